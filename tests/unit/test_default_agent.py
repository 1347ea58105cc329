"""The shipped agent: its tools answer what they are asked, and never with a crash or an endless sum."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from strands import Agent

from haltline.default_agent import SYSTEM_PROMPT, calculator, clock, make_agent
from haltline.scripted import ScriptedModel

NO_SUM = "That is not an arithmetic expression that can be worked out."


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1 + 2", "3"),
        ("(3 + 4) * 2", "14"),
        ("3 + 4 * 2", "11"),
        ("7 / 2", "3.5"),
        ("7 // 2", "3"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("2 ** 10", "1024"),
        ("2 ** -1", "0.5"),
        ("2 ** 3 ** 2", "512"),
        ("-2 ** 2", "-4"),
        ("+5", "5"),
        ("0.1 + 0.2", "0.30000000000000004"),
        ("1_000 * 0x10", "16000"),
        ("10 ** 256", "1" + "0" * 256),
        ("9.99e2", "999.0"),
    ],
)
def test_sums_are_worked_out_as_python_would(expression: str, result: str) -> None:
    assert calculator(expression=expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("", id="nothing"),
        pytest.param("1 +", id="half a sum"),
        pytest.param("1 / 0", id="division by zero"),
        pytest.param("7 % 0", id="remainder of zero"),
        pytest.param("0 ** -1", id="zero to a negative power"),
        pytest.param("(-8) ** 0.5", id="a complex result"),
        pytest.param("2j", id="a complex number"),
        pytest.param("9 ** 9 ** 9", id="a power without end"),
        pytest.param("10 ** 257", id="a power too large"),
        pytest.param("2.0 ** 1024", id="a float too large"),
        pytest.param("*".join(["256 ** 256"] * 5), id="a product too large"),
        pytest.param("9" * 5000, id="a number of 5,000 digits"),
        pytest.param("0x" + "f" * 5000, id="a number that cannot be written out"),
        pytest.param("(" * 5000 + "1" + ")" * 5000, id="5,000 parentheses"),
        pytest.param("-" * 5000 + "1", id="5,000 signs"),
        pytest.param("+".join("1" * 5000), id="5,000 terms"),
        pytest.param("'a' * 3", id="text"),
        pytest.param("[1] * 3", id="a list"),
        pytest.param("1 < 2", id="a comparison"),
        pytest.param("not 1", id="logic"),
        pytest.param("~1", id="bits"),
        pytest.param("1 << 99999", id="a shift"),
        pytest.param("x", id="a name"),
        pytest.param("abs(1)", id="a call"),
        pytest.param("().__class__", id="an attribute"),
        pytest.param("(x := 1)", id="an assignment"),
        pytest.param("1; 2", id="two statements"),
        pytest.param("__import__('os').getcwd()", id="code"),
        pytest.param("1\0", id="NUL"),
        pytest.param("1\ud800", id="half a surrogate pair"),
    ],
)
def test_what_is_no_sum_is_said_to_be_none(expression: str) -> None:
    assert calculator(expression=expression) == NO_SUM


@pytest.mark.parametrize("zone", ["UTC", "Europe/Zurich"])
def test_the_clock_tells_the_time(zone: str) -> None:
    told = clock(timezone=zone)
    assert re.fullmatch(r"[A-Z][a-z]+day, \d\d [A-Z][a-z]+ \d{4}, \d\d:\d\d:\d\d [A-Z]{3,4}", told)


def test_the_clock_is_right() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    told = datetime.strptime(clock(timezone="UTC"), "%A, %d %B %Y, %H:%M:%S UTC").replace(tzinfo=UTC)
    assert before <= told <= datetime.now(UTC)


@pytest.mark.parametrize(
    "zone", ["", ".", "Europe", "Europe/Atlantis", "../../etc/passwd", "/etc/passwd", "\0", "x" * 5000, "Zürich"]
)
def test_an_unknown_zone_is_said_to_be_one(zone: str) -> None:
    assert clock(timezone=zone) == f"Unknown time zone {zone!r}; use an IANA name such as Europe/Zurich."


def test_the_agent_has_its_prompt_and_its_tools() -> None:
    agent = make_agent(ScriptedModel())
    assert isinstance(agent, Agent)
    assert (agent.system_prompt, sorted(agent.tool_names)) == (SYSTEM_PROMPT, ["calculator", "clock", "stop"])


def test_each_run_has_an_agent_of_its_own() -> None:
    model = ScriptedModel()
    one, other = make_agent(model), make_agent(model)
    assert one is not other
    assert one.messages is not other.messages
    assert one.model is other.model
