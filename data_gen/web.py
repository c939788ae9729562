"""Asking a web service politely: a limited rate, patience with its troubles, answers kept, an end at the quota."""

import json
import random
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from llava_ial.errors import UserError

_RETRIED = {429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 120.0


@dataclass(frozen=True)
class Manners:
    """How a service is asked.

    Attributes:
        rate_per_s: Requests a second, at most.
        quota: Requests of this run, at most; 0: any number.
        max_attempts: Of one request, before the run stops.
        timeout_s: Of one attempt.
        first_wait_s: Before the second attempt; doubled for each further one, unless the service states its own.
        user_agent: Says who asks.
    """

    rate_per_s: float = 1.0
    quota: int = 0
    max_attempts: int = 5
    timeout_s: float = 30.0
    first_wait_s: float = 1.0
    user_agent: str = "llava-ial data_gen"


class JsonClient:
    """GETs and POSTs JSON; only true answers are returned, trouble is retried and then raised."""

    def __init__(
        self,
        manners: Manners,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``clock`` and ``sleep`` are replaced in tests."""
        self._manners = manners
        self._clock, self._sleep = clock, sleep
        self._free_at = 0.0
        self.num_requests = 0

    def get(self, url: str, parameters: Mapping[str, str]) -> Any:
        """The JSON that a URL answers with.

        Raises:
            UserError: Refused, no usable answer after all attempts, or the quota is used up.
        """
        return self._fetch(urllib.request.Request(f"{url}?{urllib.parse.urlencode(parameters)}"), url)  # noqa: S310

    def post(self, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
        """The JSON that a URL answers a JSON body with; raises as ``get`` does."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})  # noqa: S310
        return self._fetch(request, url)

    def _fetch(self, request: urllib.request.Request, shown: str) -> Any:
        if urllib.parse.urlsplit(shown).scheme not in ("http", "https"):
            raise UserError(f"{shown}: not a web address; it begins with http:// or https://")
        request.add_header("User-Agent", self._manners.user_agent)
        trouble = ""
        for attempt in range(self._manners.max_attempts):
            self._take_turn(shown)
            wait_s = self._manners.first_wait_s * 2**attempt * random.uniform(0.8, 1.2)  # noqa: S311
            try:
                with urllib.request.urlopen(request, timeout=self._manners.timeout_s) as response:  # noqa: S310
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                if error.code not in _RETRIED:
                    raise UserError(f"{shown} refuses: {error.code} {error.reason}; mend its address or key") from error
                trouble = f"{error.code} {error.reason}"
                wait_s = _stated_wait_s(error.headers.get("Retry-After")) or wait_s
            except (OSError, ValueError) as error:  # no connection, time-out, broken JSON
                trouble = str(error) or type(error).__name__
            if attempt + 1 < self._manners.max_attempts:
                self._sleep(min(wait_s, _LONGEST_WAIT_S))
        raise UserError(
            f"{shown} gave no usable answer in {self._manners.max_attempts} attempts ({trouble}); what was answered "
            "is kept: run the same command later"
        )

    def _take_turn(self, shown: str) -> None:
        if self._manners.quota and self.num_requests >= self._manners.quota:
            raise UserError(
                f"{shown}: the quota of {self._manners.quota} requests is used up; what was answered is kept: run the "
                "same command when there is a new one"
            )
        wait_s = self._free_at - self._clock()
        if wait_s > 0:
            self._sleep(wait_s)
        self._free_at = max(self._free_at, self._clock()) + 1.0 / self._manners.rate_per_s
        self.num_requests += 1


class AnswerCache:
    """Answers by key, in an SQLite file that a kill leaves whole; in memory alone where a service forbids storing."""

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path or ":memory:")
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except sqlite3.DatabaseError as error:
            raise UserError(f"geocoder_cache: {path}: {error}; delete the file or name another") from error

    def get(self, key: str) -> Any:
        """An answer, None if there is none."""
        row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, key: str, answer: Any) -> None:
        """Keeps an answer from now on."""
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))

    def close(self) -> None:
        """Closes the file."""
        self._database.close()


def _stated_wait_s(value: str | None) -> float | None:
    """``Retry-After``: seconds or a date."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
