"""What is counted. Who is told of it depends on where a process runs."""

from __future__ import annotations

from haltline.runs import Receipt, Usage


class Metrics:
    """Tells nobody."""

    def run_began(self) -> None:
        """One more live run on this replica."""

    def run_left(self) -> None:
        """One less."""

    def ended(self, receipt: Receipt | None, usage: Usage) -> None:
        """Count the end of a run and what it used."""

    def stop_answered(self, status: str) -> None:
        """Count the answer to a stop: what it said, or `failed` where the stop could not be stored."""

    def event_lost(self) -> None:
        """Count an end of a run that EventBridge did not confirm."""

    def flush(self) -> None:
        """Tell whoever does not ask by himself."""

    def text(self) -> bytes:
        """Prometheus' text format."""
        return b""
