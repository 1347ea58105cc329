"""Runs: their names, their stop token, their arrival, their receipt. Nothing here needs an event loop."""

from __future__ import annotations

import dataclasses
import json
import re
import time

import pytest

from haltline.runs import Arrival, Outcome, Receipt, Run, StopReason, StopToken, new_run_id


def test_a_run_id_is_a_ulid_and_new_each_time() -> None:
    ids = [new_run_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", i) for i in ids)


def test_the_words_that_go_over_the_wire() -> None:
    """They are stored in Redis and in transcripts: another name would orphan what older replicas wrote."""
    assert [r.value for r in StopReason] == [
        "user",
        "superseded",
        "deleted",
        "disconnect",
        "deadline",
        "shutdown",
        "signal_lost",
        "taken",
        "agent",
    ]
    assert [o.value for o in Outcome] == ["done", "stopped", "error", "lost", "refused"]


# ---- the stop token


def test_a_token_has_not_fired_at_first() -> None:
    token = StopToken()
    assert (token.stopped, token.reason, token.fired_at) == (False, None, 0.0)


@pytest.mark.parametrize("reason", StopReason)
def test_a_token_fires_with_its_reason_and_time(reason: StopReason) -> None:
    token = StopToken()
    before = time.monotonic()
    assert token.stop(reason) is True
    assert (token.stopped, token.reason) == (True, reason)
    assert before <= token.fired_at <= time.monotonic()


def test_the_first_reason_stays() -> None:
    token = StopToken()
    token.stop(StopReason.DEADLINE)
    fired_at = token.fired_at
    assert token.stop(StopReason.USER) is False
    assert (token.reason, token.fired_at) == (StopReason.DEADLINE, fired_at)


def test_each_callback_is_called_once_the_latest_first() -> None:
    token, called = StopToken(), []
    token.on_stop(lambda: called.append("first"))
    token.on_stop(lambda: called.append("second"))
    assert called == []
    token.stop(StopReason.USER)
    token.stop(StopReason.USER)
    assert called == ["second", "first"]


def test_a_callback_that_fails_keeps_no_other_from_being_called() -> None:
    token, called = StopToken(), []

    def fails() -> None:
        raise OSError("broken")

    token.on_stop(lambda: called.append("first"))
    token.on_stop(fails)
    with pytest.raises(OSError, match="broken"):
        token.stop(StopReason.USER)
    assert called == ["first"]
    assert token.stopped


def test_a_callback_that_comes_late_is_called_at_once() -> None:
    token, called = StopToken(), []
    token.stop(StopReason.USER)
    token.on_stop(lambda: called.append("late"))
    assert called == ["late"]


def test_a_callback_sees_the_token_fired() -> None:
    token, seen = StopToken(), []
    token.on_stop(lambda: seen.append((token.stopped, token.reason, token.stop(StopReason.AGENT))))
    token.stop(StopReason.USER)
    assert seen == [(True, StopReason.USER, False)]


def test_a_callback_may_add_another() -> None:
    token, called = StopToken(), []
    token.on_stop(lambda: token.on_stop(lambda: called.append("inner")))
    token.stop(StopReason.USER)
    assert called == ["inner"]


# ---- arrivals, runs, receipts


@pytest.mark.parametrize(("seconds", "age_ms"), [(0.0, 0), (0.0015, 1.5), (2.5, 2500)])
def test_the_age_of_a_request(seconds: float, age_ms: float, monkeypatch: pytest.MonkeyPatch) -> None:
    arrival = Arrival(read_at=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + seconds)
    assert arrival.age_ms == age_ms


def test_an_arrival_without_a_front_door_has_no_stamp_and_is_new() -> None:
    before = time.monotonic()
    arrival = Arrival()
    assert arrival.stamp == 0
    assert before <= arrival.read_at <= time.monotonic()


def test_two_runs_share_nothing() -> None:
    one, other = (Run("trip", "01JD8X5W3ZJ7V5Q9T4N2M6K8R0", Arrival(1)) for _ in range(2))
    one.token.stop(StopReason.USER)
    assert one.nonce != other.nonce
    assert not other.token.stopped
    assert (other.claim, other.arrived_ms, other.closing_marked) == ("", "", False)


def test_a_receipt_is_plain_json() -> None:
    receipt = Receipt("01JD8X5W3ZJ7V5Q9T4N2M6K8R0", Outcome.STOPPED, StopReason.USER, 1.5, 2.5)
    assert json.loads(json.dumps(dataclasses.asdict(receipt))) == {
        "run_id": "01JD8X5W3ZJ7V5Q9T4N2M6K8R0",
        "outcome": "stopped",
        "reason": "user",
        "halted_ms": 1.5,
        "upstream_closed_ms": 2.5,
        "saved": True,
    }
