"""The table of the benchmark says what was measured, and what was missed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.__main__ import NO_TIMES, PARTS, groups
from tests.bench.figures import Figure, shown, table
from tests.bench.picture import draw
from tests.stops.figures import percentile


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.0123"), (1.0, "1.00"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_three_digits_are_shown(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0, 0.5, 0.99, 1)] == [1, 50, 99, 100]


def test_a_missed_bar_is_named_with_its_reason() -> None:
    met = Figure("stop", "ms", 2, {"bare": 1}, "<= 3 x bare", True)
    missed = Figure("start", "s", 9, bar="<= 1 s", met=False, why="it sleeps")
    lines = table([met, missed]).splitlines()
    assert [line.split()[-1] for line in lines[2:4]] == ["met", "MISSED"]
    assert lines[-1] == "missed: start: it sleeps"


def test_a_figure_comes_back_from_json(tmp_path: Path) -> None:
    figure = Figure("stop", "ms", 2, {"bare": 1}, "<= 3 x bare", True, gated=True, more={"samples": 3})
    assert Figure(**json.loads(json.dumps(figure.as_json()))) == figure
    draw([figure], tmp_path / "figures.png")
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("quick", [True, False])
def test_every_part_is_measured_once_and_times_alone(quick: bool) -> None:
    measured = groups(PARTS, quick=quick)
    assert sorted(part for parts in measured for part in parts) == sorted(PARTS)
    assert all(len(parts) == 1 or set(parts) <= set(NO_TIMES) for parts in measured)
