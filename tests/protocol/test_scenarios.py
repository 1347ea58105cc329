"""The scenarios of the stop protocol, each in many interleavings chosen by seeds, over the product and a real Valkey.

A few seeds run by default; STOPS_FULL=1 runs thousands. A test that fails prints its steps and
how to take the same ones again: STOPS_SEED names the one seed to run, whose steps are printed (-s shows them).
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from haltline import redis_scripts
from tests.protocol.conftest import Valkey
from tests.protocol.expected import EXPECTED, EXPECTED_OF_LOOKS
from tests.protocol.promises import PROMISES
from tests.protocol.scenarios import ALL, BESIDES, FAULT_FREE, Scenario
from tests.protocol.stepper import AS_IT_IS, Result, Stepper, Variant

SEEDS = (1, 60, 100)  # of each scenario by default; in full where nothing breaks; in full where something does
COUNTED = ("STOP_LOST", "STOP_HITS_ANOTHER_RUN", "FALSE_ANSWER")

pytestmark = pytest.mark.timeout(300)


def seeds(wanted: int) -> range:
    one = os.environ.get("STOPS_SEED")
    return range(int(one), int(one) + 1) if one else range(wanted)


def by_name(scenario: Scenario) -> str:
    return scenario.name


def take(valkey: Valkey, scenario: Scenario, seed: int, variant: Variant = AS_IT_IS) -> Result:
    return Stepper(scenario, seed, valkey.port, valkey.control, variant, expected_of(scenario, variant)).run()


def expected_of(scenario: Scenario, variant: Variant) -> dict[str, str]:
    """What may break, and why."""
    several = not variant.push and len(scenario.chats) > 1
    return EXPECTED.get(scenario.name, {}) | (EXPECTED_OF_LOOKS if several else {})


def run(
    valkey: Valkey, scenario: Scenario, count: int, record: Callable[[str, object], None], variant: Variant = AS_IT_IS
) -> None:
    """Many interleavings of one scenario; what they found is counted, then judged."""
    unsafe = expected_of(scenario, variant)
    counted = dict.fromkeys(("interleavings", "different", "calm", "unsafe", "steps", "waits"), 0)
    worst: Result | None = None
    orders = set()
    for seed in seeds(count):
        result = take(valkey, scenario, seed, variant)
        counted["interleavings"] += 1
        orders.add(result.order)
        counted["unsafe"] += bool(unsafe)
        counted["steps"] += result.steps
        counted["waits"] += result.waits
        for promise in result.broken:
            said = f"expected {promise}" if promise in unsafe else promise
            counted[said] = counted.get(said, 0) + 1
        if result.failed and worst is None:
            worst = result
        if "STOPS_SEED" in os.environ:
            print(result)
    counted["different"] = len(orders)
    counted["calm"] = len(orders) if not scenario.faults else 0
    for name, value in counted.items():
        record(f"stops: {name}", value)
    if worst:
        node = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        again = f'STOPS_SEED={worst.seed} python -m pytest -n 0 "{node}"'
        pytest.fail(f"{worst}\n\nThe same again: {again}", pytrace=False)


@pytest.mark.parametrize("scenario", ALL + BESIDES, ids=by_name)
def test_scenario(
    valkey: Valkey, scenario: Scenario, stops_full: bool, record_property: Callable[[str, object], None]
) -> None:
    run(valkey, scenario, SEEDS[1 + bool(scenario.faults)] if stops_full else SEEDS[0], record_property)


# ---- each way alone

PULL_ONLY = Variant("no push arrives", push=False)
PUSH_ONLY = Variant("nobody looks", looks=False)


@pytest.mark.parametrize("scenario", FAULT_FREE, ids=by_name)
def test_the_look_alone(
    valkey: Valkey, scenario: Scenario, stops_full: bool, record_property: Callable[[str, object], None]
) -> None:
    run(valkey, scenario, 15 if stops_full else 1, record_property, PULL_ONLY)


@pytest.mark.parametrize("scenario", [s for s in FAULT_FREE if not s.by_hand], ids=by_name)
def test_the_push_alone(
    valkey: Valkey, scenario: Scenario, stops_full: bool, record_property: Callable[[str, object], None]
) -> None:
    run(valkey, scenario, 15 if stops_full else 1, record_property, PUSH_ONLY)


# ---- that it can fail


def changed(script: str, old: str, new: str) -> dict[str, str]:
    text: str = getattr(redis_scripts, script)
    assert text.count(old) == 1, f"{script} reads otherwise by now"
    return {script: text.replace(old, new)}


async def nothing(_: object) -> None:
    """In place of what a broken product does not do."""


async def held(*_: object) -> bool:
    """In place of raising a claim."""
    return True


MUTANTS = (
    (
        Variant(
            "BEGIN forgets the watermark",
            scripts=changed("BEGIN", "elseif tonumber(rec.upto or 0) >= arrived then rec.stopped = 'user' end", "end"),
        ),
        "a run without end, stopped",
        "STOP_LOST",
    ),
    (
        Variant(
            "BEGIN does not compare times",
            scripts=changed("BEGIN", "tonumber(rec.upto or 0) >= arrived", "rec.upto"),
        ),
        "a message when the stop was answered",
        "STOP_HITS_ANOTHER_RUN",
    ),
    (
        Variant("neither push nor look", push=False, looks=False),
        "a run without end, stopped",
        "STOP_LOST",
    ),
    (
        Variant("STOP without slack", scripts=changed("STOP", "local SLACK = 50", "local SLACK = 0")),
        "clock -50 ms, a program: message, answer seen, stop",
        "STOP_LOST",
    ),
    (
        Variant("STOP does not mark the run closing", scripts=changed("STOP", "  rec.closing = true\n", "")),
        "a message on the closing frame",
        "FALSE_409_AFTER_CLOSING_FRAME",
    ),
    (
        Variant(
            "STOP finds no run",
            scripts=changed("STOP", "return {'live', rec.run, rec.owner, text(s)}", "return {'idle', text(s)}"),
        ),
        "a run without end, stopped",
        "FALSE_ANSWER",
    ),
    (
        Variant("END leaves the stop", scripts=changed("END", "drain(mine and tonumber(rec.a) or 0)", "")),
        "a stop set by hand to a word, a message meanwhile",
        "STOP_HITS_ANOTHER_RUN",
    ),
    (
        Variant("END does not free the chat", scripts=changed("END", "  rec[field] = nil\n", "")),
        "a message on the closing frame",
        "FALSE_409_AFTER_CLOSING_FRAME",
    ),
    (
        Variant(
            "the deletion leaves no watermark",
            scripts=changed("BEGIN", "elseif tonumber(rec.gone or 0) >= arrived then rec.stopped = 'deleted'", ""),
        ),
        "a deletion while a run goes on",
        "DELETED_CHAT_COMES_BACK",
    ),
    (
        Variant("nobody is held still", patches={"haltline.redis_pulse.Pulse.certain": lambda *_: True}),
        "the owner stalls",
        "TWO_RUNS_LIVE",
    ),
    (
        Variant("claims are not raised", patches={"haltline.redis_bus.RedisBus._put_back": held}),
        "both owners stall",
        "TWO_RUNS_LIVE",
    ),
    (
        Variant("a bus that came back is believed", patches={"haltline.redis_watch.Watch._came_back": lambda _: None}),
        "an older Redis takes over",
        "FALSE_ANSWER",
    ),
    (
        Variant("stops are not set again", patches={"haltline.redis_bus.RedisBus._put_back_stops": nothing}),
        "an older Redis takes over",
        "STOP_LOST",
    ),
    (Variant("the store takes every write", conditional=False), "the owner stalls", "TWO_WRITERS"),
)


QUICKLY = [MUTANTS[i][0] for i in (0, 3, 5)]


@pytest.mark.parametrize(("variant", "name", "promise"), MUTANTS, ids=[v.name for v, _, _ in MUTANTS])
def test_a_broken_protocol_is_noticed(
    valkey: Valkey, stops_full: bool, variant: Variant, name: str, promise: str
) -> None:
    if not stops_full and variant not in QUICKLY:
        pytest.skip("in make stops")
    scenario = next(s for s in ALL + BESIDES if s.name == name)
    for seed in range(400):  # some need a rare order
        result = Stepper(scenario, seed, valkey.port, valkey.control, variant, PROMISES).run()
        if promise in result.broken:
            return
    pytest.fail(f"{variant.name}: {promise} was not noticed", pytrace=False)


def test_a_seed_takes_the_same_steps_again(valkey: Valkey) -> None:
    for scenario in (ALL[12], ALL[23], ALL[32]):
        first, second = (take(valkey, scenario, 7).trace for _ in range(2))
        assert [line.partition(":")[0] for line in first] == [line.partition(":")[0] for line in second]
