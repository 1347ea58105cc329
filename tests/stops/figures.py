"""Figures that the suite prints at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence

FIGURES: list[str] = []


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` (0 to 1) of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> str:
    """p50, p99 and the largest, in ms."""
    return (
        f"n {len(values):4}  p50 {percentile(values, 0.5):6.2f}  p99 {percentile(values, 0.99):6.2f}  "
        f"max {max(values):6.2f} ms"
    )


def missed(values: Sequence[float], bars: dict[float, float], bare: Sequence[float]) -> list[str]:
    """Which bars (share of the values to ms) are missed.

    `bare` is what the machine took for the least of it, measured in between: where that alone is more than a third of
    a bar, the machine is too busy to tell, and the bar is three times that.
    """
    found = []
    for share, bar in bars.items():
        value, allowed = percentile(values, share), max(bar, 3 * percentile(bare, share))
        if value > allowed:
            found.append(f"p{share * 100:.0f} {value:.2f} ms is over {allowed:.2f} ms")
        elif value > bar:
            figure("MISSED, on a busy machine", f"p{share * 100:.0f} {value:.2f} ms, the bar is {bar} ms")
    return found


def figure(what: str, value: str) -> None:
    """Print a line at the end of the session."""
    FIGURES.append(f"{what:58} {value}")
