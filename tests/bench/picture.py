"""The figures as a picture: each as a bar beside its baselines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from tests.bench.figures import Figure, shown

OURS, OTHERS, MISSED = "#1f6f5c", "#b9bec4", "#a33"


def draw(figures: Sequence[Figure], into: Path) -> None:
    """Draw those that have a baseline into `into` (PNG): a panel a figure, on its own scale."""
    chosen = [f for f in figures if f.beside]
    if not chosen:
        return
    columns = 3
    rows = -(-len(chosen) // columns)
    fig, grid = plt.subplots(rows, columns, figsize=(13, 1.35 * rows + 0.3), squeeze=False, layout="constrained")
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes, f in zip(grid.flat, chosen, strict=False):
        bars = {"Haltline": f.ours, **f.beside}
        places = range(len(bars))
        axes.barh(places, list(bars.values()), color=[OURS, *[OTHERS] * len(f.beside)], height=0.7)
        axes.set_yticks(places, list(bars), fontsize=7)
        axes.invert_yaxis()
        title = f"{f.what}{f', {f.unit}' if f.unit else ''}{' (bar missed)' if f.missed else ''}"
        axes.set_title(textwrap.fill(title, 44), fontsize=8, loc="left", color=MISSED if f.missed else "black")
        axes.set_xticks([])
        axes.margins(x=0.18)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        for place, value in zip(places, bars.values(), strict=True):
            axes.text(value, place, f" {shown(value)}", va="center", fontsize=7)
    fig.savefig(into, dpi=110)
    plt.close(fig)
