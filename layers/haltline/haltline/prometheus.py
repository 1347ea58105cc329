"""Metrics for Prometheus, which asks each replica."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from haltline.metrics import Metrics
from haltline.runs import Outcome, Receipt, Usage

_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class PrometheusMetrics(Metrics):
    """One registry an app, so that two apps in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._was_up: bool | None = None
        self._live = Gauge("haltline_live_runs", "Runs live on this replica", registry=self.registry)
        self._runs = Counter("haltline_runs", "Runs ended", ["outcome", "reason"], registry=self.registry)
        self._stops = Counter("haltline_stops", "Stops answered, by status", ["status"], registry=self.registry)
        self._halted = Histogram(
            "haltline_halt_seconds", "Stop signal to closing frame", buckets=_FAST, registry=self.registry
        )
        self._tokens = Counter("haltline_tokens", "Tokens of ended runs", ["kind"], registry=self.registry)
        self._kept = Counter("haltline_tokens_kept", "Output tokens of stopped runs", registry=self.registry)
        self._late = Counter("haltline_stops_late", "Stops found by a look, not by their push", registry=self.registry)
        self._up = Gauge("haltline_bus_up", "Whether the signal bus is heard and answers", registry=self.registry)
        self._returns = Counter("haltline_bus_returns", "Times the signal bus came back", registry=self.registry)
        self._forgot = Counter(
            "haltline_bus_forgot", "What the signal bus lost and was told again", ["what"], registry=self.registry
        )
        self._held = Gauge("haltline_runs_held", "Runs held still until their chats are sure", registry=self.registry)
        self._events_lost = Counter(
            "haltline_events_lost", "Ends of runs that EventBridge did not confirm", registry=self.registry
        )

    def run_began(self) -> None:
        """One more live run on this replica."""
        self._live.inc()

    def run_left(self) -> None:
        """One less."""
        self._live.dec()

    def ended(self, receipt: Receipt | None, usage: Usage) -> None:
        """Count the end of a run and what it used."""
        self._tokens.labels("input").inc(usage.input_tokens)
        self._tokens.labels("output").inc(usage.output_tokens)
        if receipt is None:
            return
        if receipt.outcome is Outcome.STOPPED:
            self._kept.inc(usage.output_tokens)
        self._runs.labels(receipt.outcome.value, receipt.reason.value if receipt.reason else "").inc()
        if receipt.halted_ms is not None:
            self._halted.observe(receipt.halted_ms / 1000)

    def stop_answered(self, status: str) -> None:
        """Count the answer to a stop: what it said, or `failed` where the stop could not be stored."""
        self._stops.labels(status).inc()

    def stop_late(self) -> None:
        """Count a stop that was stored but not pushed: a look had to find it."""
        self._late.inc()

    def bus_up(self, up: bool) -> None:
        """The bus is heard and answers, or not. Each time that it does again is counted."""
        if up and self._was_up is False:
            self._returns.inc()
        self._was_up = up
        self._up.set(up)

    def bus_forgot(self, what: Literal["record", "stop"]) -> None:
        """Count what the bus had stored and lost, and what was put back."""
        self._forgot.labels(what).inc()

    def runs_held(self, number: int) -> None:
        """So many runs are held still, since their chats may have been taken by others."""
        self._held.set(number)

    def event_lost(self) -> None:
        """Count an end of a run that EventBridge did not confirm."""
        self._events_lost.inc()

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
