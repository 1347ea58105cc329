"""A figure, and the table of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    `beside`: each baseline by its name, measured in the same run, in the same unit.
    `bar`: what is asked for, in words, and `met` whether it was; None where it is only told.
    `gated`: `make bench` fails where it is missed.
    `why`: the reason, where one was found for a bar that is missed.
    `more`: anything else worth keeping, which only the JSON has.
    """

    what: str
    unit: str
    ours: float
    beside: dict[str, float] = field(default_factory=dict)
    bar: str = ""
    met: bool | None = None
    gated: bool = False
    why: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def missed(self) -> bool:
        """Whether a bar was missed."""
        return self.met is False

    def as_json(self) -> dict[str, Any]:
        """As it lies in the JSON."""
        return asdict(self)


def shown(value: float) -> str:
    """Three digits of a figure, no more than can be believed."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def table(figures: Iterable[Figure]) -> str:
    """All figures as text, one a line, with what is beside them."""
    rows = [("figure", "Haltline", "", "beside it", "bar", "")]
    for f in figures:
        beside = " · ".join(f"{name} {shown(value)}" for name, value in f.beside.items())
        verdict = {True: "met", False: "MISSED", None: ""}[f.met]
        rows.append((f.what, shown(f.ours), f.unit, beside, f.bar, verdict))
    widths = [max(len(row[n]) for row in rows) for n in range(6)]
    lines = []
    for row in rows:
        cells = [row[n].rjust(widths[n]) if n == 1 else row[n].ljust(widths[n]) for n in range(6)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    lines += [f"missed: {f.what}: {f.why or 'no reason found yet'}" for f in figures if f.missed]
    return "\n".join(lines)
