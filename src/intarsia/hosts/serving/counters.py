"""What a server has done, in the text that Prometheus reads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .models import Shelf
from .settings import Request

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counters:
    """Counters of one server; nothing is global."""

    def __init__(self, shelf: Shelf) -> None:
        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self.registry, "namespace": "intarsia"}
        self.requests = Counter("requests", "By model and HTTP status.", ("model", "status"), **of)
        self.prompt = Counter("prompt_tokens", "Tokens of prompts.", ("model",), **of)
        self.generated = Counter("generation_tokens", "New tokens.", ("model",), **of)
        said = "Seconds of a request, waiting included."
        self.seconds = Histogram("request_seconds", said, ("model",), buckets=SECONDS, **of)
        said = "Seconds to the first token of a stream."
        self.first = Histogram(
            "time_to_first_token_seconds", said, ("model",), buckets=SECONDS, **of
        )
        self.running = Gauge("requests_running", "In the works.", **of)
        self.waiting = Gauge("requests_waiting", "Waiting for their turn.", **of)
        self.registry.register(_Experts(shelf))  # pyright: ignore[reportArgumentType]

    def refused(self, status: int) -> None:
        """Count an answer to a request that was never whole."""
        self.requests.labels("", str(status)).inc()

    def ended(self, record: Request, status: int) -> None:
        """A request is over.  Models that do not exist have no name here.

        status: that of the answer, or of the error event that ended its stream; 499 if the client
        left before its answer was whole.
        """
        self.requests.labels(record.model, str(status)).inc()
        if not record.model:
            return
        self.prompt.labels(record.model).inc(record.prompt)
        self.generated.labels(record.model).inc(record.generated)
        self.seconds.labels(record.model).observe(time.perf_counter() - record.began)
        if record.first is not None:
            self.first.labels(record.model).observe(record.first)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)


class _Experts:
    """Hits and loads of the experts in slots, read when they are asked for."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def collect(self) -> Iterator[Metric]:
        named = {
            "hits": "Experts that were in their slots.",
            "loads": "Experts that were read.",
            "bytes": "Bytes of experts that were read.",
            "seconds": "Seconds in which products waited for a read.",
        }
        for name, said in named.items():
            family = CounterMetricFamily(f"intarsia_expert_{name}", said, labels=("model",))
            for model, slots in self.shelf.slots():
                family.add_metric((model,), getattr(slots.residency(), name))
            yield family
        said = "Experts that are in use by a layer at this moment."
        pinned = GaugeMetricFamily("intarsia_expert_slots_pinned", said, labels=("model",))
        for model, slots in self.shelf.slots():
            pinned.add_metric((model,), len(slots.cache.pinned))
        yield pinned
