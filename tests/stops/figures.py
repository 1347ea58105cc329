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


def figure(what: str, value: str) -> None:
    """Print a line at the end of the session."""
    FIGURES.append(f"{what:58} {value}")
