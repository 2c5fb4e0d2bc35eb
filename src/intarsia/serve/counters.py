"""What a server has done, in the text that Prometheus reads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .models import ServedModels
from .settings import Request

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counters:
    """Counters of one server; nothing is global."""

    def __init__(self, served_models: ServedModels) -> None:
        # a registry of its own: two servers in one process would share the global one's counters
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry, "namespace": "intarsia"}
        self.requests = Counter(
            "requests", "By model and HTTP status.", ("model", "status"), **options
        )
        self.prompt = Counter("prompt_tokens", "Tokens of prompts.", ("model",), **options)
        self.generated = Counter("generation_tokens", "New tokens.", ("model",), **options)
        text = "Seconds of a request, waiting included."
        self.seconds = Histogram("request_seconds", text, ("model",), buckets=SECONDS, **options)
        text = "Seconds to the first token of a stream."
        self.first = Histogram(
            "time_to_first_token_seconds", text, ("model",), buckets=SECONDS, **options
        )
        self.running = Gauge("requests_running", "In the works.", **options)
        self.waiting = Gauge("requests_waiting", "Waiting for their turn.", **options)
        self.registry.register(_Experts(served_models))  # pyright: ignore[reportArgumentType]

    def refused(self, status: int) -> None:
        """Count an answer to a request that never arrived as a whole."""
        self.requests.labels("", str(status)).inc()

    def ended(self, record: Request, status: int) -> None:
        """Count a request that is over: its status, tokens and seconds.

        record: of the request; a model that does not exist is counted without a name.
        status: of the answer, or of the error event that ended its stream; 499 if the client left
        before its answer was whole.
        """
        self.requests.labels(record.model, str(status)).inc()
        # labels are kept for ever: a name that a client made up must not become one
        if not record.model:
            return
        self.prompt.labels(record.model).inc(record.prompt)
        self.generated.labels(record.model).inc(record.generated)
        self.seconds.labels(record.model).observe(time.perf_counter() - record.began)
        if record.first is not None:
            self.first.labels(record.model).observe(record.first)

    def text(self) -> bytes:
        """Return all counters in Prometheus' text."""
        return generate_latest(self.registry)


class _Experts:
    """Collector of the hits and loads of experts in slots, read when Prometheus asks."""

    def __init__(self, served_models: ServedModels) -> None:
        self.served_models = served_models

    def collect(self) -> Iterator[Metric]:
        """Yield a metric for each count of experts in memory, by model."""
        texts = {
            "hits": "Experts that were in their slots.",
            "loads": "Experts that were read.",
            "bytes": "Bytes of experts that were read.",
            "seconds": "Seconds in which products waited for a read.",
        }
        for name, text in texts.items():
            # adapters share the slots of their model, which is listed once
            family = CounterMetricFamily(f"intarsia_expert_{name}", text, labels=("model",))
            for model, slots in self.served_models.slots():
                family.add_metric((model,), getattr(slots.residency(), name))
            yield family
        text = "Experts that are in use by a layer at this moment."
        pinned = GaugeMetricFamily("intarsia_expert_slots_pinned", text, labels=("model",))
        for model, slots in self.served_models.slots():
            pinned.add_metric((model,), len(slots.cache.pinned))
        yield pinned
