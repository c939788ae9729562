"""Reading tables that users bring: CSV, JSON Lines, Parquet."""

import csv
import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_ial.errors import UserError


def read_rows(path: Path, needed: Collection[str]) -> Iterator[dict[str, str]]:
    """Rows of a table as texts, by the file's suffix: ``.parquet``, ``.jsonl``, else CSV; "" for a missing value.

    Raises:
        UserError: Unreadable, no table, or a needed column is missing.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet_rows(path, needed)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _json_rows(path, needed)
    return read_csv_rows(path, needed)


def read_csv_rows(path: Path, needed: Collection[str]) -> Iterator[dict[str, str]]:
    """Rows of a UTF-8 CSV file with a header line, values without surrounding blanks, "" where a line is short.

    Raises:
        UserError: Unreadable, no table, or a needed column is missing.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            found = reader.fieldnames or []
            _check_columns(path, needed, found)
            for row in reader:
                # What a long line has too much stands under the key None.
                yield {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable UTF-8 CSV table: {error}") from error


def load_json(path: Path, field: str) -> Any:
    """The content of a JSON file that a setting names.

    Raises:
        UserError: Unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: {path}: not a readable JSON file: {error}") from error


def parse_number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _parquet_rows(path: Path, needed: Collection[str]) -> Iterator[dict[str, str]]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(path, needed, names)
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield {key: text_of(value) for key, value in row.items()}
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet table: {error}") from error


def _json_rows(path: Path, needed: Collection[str]) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}: line {number} is no JSON object")
                if number == 1:
                    _check_columns(path, needed, list(row))
                yield {key: text_of(value) for key, value in row.items()}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON Lines table: {error}") from error


def _check_columns(path: Path, needed: Collection[str], found: Collection[str]) -> None:
    if missing := [name for name in needed if name not in found]:
        raise UserError(f"{path}: no column '{missing[0]}'; it has: {', '.join(found) or 'no header line'}")


def text_of(value: Any) -> str:
    """A value of a table as text, "" for a missing one."""
    if value is None:
        return ""
    return value.isoformat() if hasattr(value, "isoformat") else str(value).strip()
