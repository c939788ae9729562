"""Counters of a server for Prometheus: how often and how long, never what, who or where."""

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram

from llava_ial.errors import UserError

LOCATE, ASK, WHY = "locate", "ask", "why"
_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Work done since the server was started, by kind (locate, ask, why) and outcome.

    Outcomes: ``ok``; ``refused``, the visitor's to mend; ``stopped`` by the visitor; ``failed``, ours to mend.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "llava_ial_requests", "Pieces of work by kind and outcome", ["kind", "outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "llava_ial_work_seconds", "Time from the start of the work to its end", ["kind"],
            buckets=_BUCKETS_S, registry=self.registry,
        )  # fmt: skip

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Counts a piece of work and times it."""
        outcome, started = "failed", time.monotonic()
        try:
            yield
            outcome = "ok"
        except UserError:
            outcome = "refused"
            raise
        except GeneratorExit:
            outcome = "stopped"
            raise
        finally:
            self._requests.labels(kind, outcome).inc()
            self._seconds.labels(kind).observe(time.monotonic() - started)
