"""Metrics: what Prometheus reads at /metrics, in a registry of the application's own."""

import logging

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counts and times of one application."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.log = logging.getLogger("instantstyle.serve")
        self.jobs = Counter("instantstyle_jobs", "Jobs that ended, by how", ["state"], registry=registry)
        self.refused = Counter("instantstyle_refused", "Requests that were refused", ["why"], registry=registry)
        self.job_seconds = Histogram(
            "instantstyle_job_seconds", "From acceptance to the end", buckets=_SECONDS, registry=registry
        )
        self.step_seconds = Histogram(
            "instantstyle_step_seconds", "One step of all runs together", buckets=_SECONDS, registry=registry
        )
        self.queued = Gauge("instantstyle_queued", "Jobs that wait", registry=registry)
        self.running = Gauge("instantstyle_running", "Jobs that are drawn", registry=registry)
        self.readers = Gauge("instantstyle_event_streams", "Event streams that are open", registry=registry)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
