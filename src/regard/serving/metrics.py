"""Figures of the server for Prometheus, at /metrics. They stay in this process: nothing is sent anywhere."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time, open files; on Linux
        self.requests = Counter(
            "regard_requests", "Requests by path and status; 499: the client left.", ["path", "status"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "regard_request_seconds", "Time from the headers of a request to the end of its answer.", ["path"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.batches = Histogram(
            "regard_batch_images", "Images computed at once.", ["model"], buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )  # fmt: skip
        self.computing = Histogram(
            "regard_batch_seconds", "Time of one computation.", ["model"], buckets=SECONDS, registry=registry
        )
        self.admitted = Gauge(
            "regard_admitted_images", "Images that are accepted and not yet answered.", ["model"], registry=registry
        )
        self.restarts = Gauge(
            "regard_worker_restarts", "Times that a computing thread started again.", ["model"], registry=registry
        )

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)
