"""Reading CSV tables that users bring."""

import csv
from collections.abc import Collection, Iterator
from pathlib import Path

from llava_ial.errors import UserError


def read_csv_rows(path: Path, needed: Collection[str]) -> Iterator[dict[str, str]]:
    """Rows of a UTF-8 CSV file with a header line, values without surrounding blanks, "" where a line is short.

    Raises:
        UserError: Unreadable, no table, or a needed column is missing.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            found = reader.fieldnames or []
            if missing := [name for name in needed if name not in found]:
                raise UserError(f"{path}: no column '{missing[0]}'; it has: {', '.join(found) or 'no header line'}")
            for row in reader:
                # What a long line has too much stands under the key None.
                yield {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable UTF-8 CSV table: {error}") from error
