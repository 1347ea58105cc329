"""What is counted. Who is told of it depends on where a process runs."""

from __future__ import annotations

from typing import Literal

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

    def stop_late(self) -> None:
        """Count a stop that was stored but not pushed: a look had to find it."""

    def bus_up(self, up: bool) -> None:
        """The bus is heard and answers, or not. Each time that it does again is counted."""

    def bus_forgot(self, what: Literal["record", "stop"]) -> None:
        """Count what the bus had stored and lost, and what was put back."""

    def runs_held(self, number: int) -> None:
        """So many runs are held still, since their chats may have been taken by others."""

    def event_lost(self) -> None:
        """Count an end of a run that EventBridge did not confirm."""

    def flush(self) -> None:
        """Tell whoever does not ask by himself."""

    def text(self) -> bytes:
        """Prometheus' text format."""
        return b""
