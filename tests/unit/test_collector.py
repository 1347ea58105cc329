"""When a replica's garbage is collected."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from haltline.serve import Collector


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of runs that had ended when a full collection came."""
    before, found = gc.get_threshold(), list[int]()
    monkeypatch.setattr("haltline.serve.gc.freeze", lambda: None)
    monkeypatch.setattr("haltline.serve.gc.collect", lambda: found.append(0))
    yield found
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("live", "expected"),
    [(0, [10, 20, 30]), (1, [100, 200]), (250, [250, 500])],
    ids=["none is live", "one is", "more than a hundred are"],
)
def test_a_full_collection_comes_when_it_is_worth_it(live: int, expected: list[int], collections: list[int]) -> None:
    collector = Collector(lambda: live)
    at = []
    for ended in range(1, expected[-1] + 1):
        collections.clear()
        collector.run_ended()
        if collections:
            at.append(ended)
    assert at == expected


def test_python_makes_hardly_any_by_itself(collections: list[int]) -> None:
    """What is under way counts as new: with its own thresholds, hundreds of chats that only talk cause some."""
    Collector(lambda: 0)
    young, middle, full = gc.get_threshold()
    assert gc.isenabled()
    assert young * middle * full >= 100_000_000
