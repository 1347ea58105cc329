"""The issuer's keys: which are used, and how they are read anew from a file or an address, by a driven clock."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt import PyJWK
from jwt.algorithms import RSAAlgorithm

from haltline import jwt_keys
from haltline.jwt_keys import KeysAtUrl, KeysInFile, parse_jwks
from tests.credentials import (
    Issuer,
    ec_key,
    jwks,
    rsa_key,
    write_jwks,
)

RSA, EC = rsa_key(), ec_key()


class Clock:
    at = 1000.0

    def __call__(self) -> float:
        return self.at


# ---- which keys are used


@pytest.mark.parametrize(
    "jwk",
    [
        pytest.param(RSA.jwk(use="enc"), id="for encryption"),
        pytest.param(RSA.jwk(use=None, key_ops=["encrypt"]), id="for another operation"),
        pytest.param(RSA.jwk(alg="RS384"), id="for RS384"),
        pytest.param(RSA.jwk(alg="PS256"), id="for PS256"),
        pytest.param(RSA.jwk(alg="HS256"), id="for HS256"),
        pytest.param(RSA.jwk(kid=1), id="a number for a kid"),
        pytest.param(RSA.jwk(n=None), id="no modulus"),
        pytest.param(RSA.jwk(n=5), id="a number for a modulus"),
        pytest.param(RSA.jwk(e="AQ"), id="the exponent 1"),
        pytest.param(RSA.jwk(kty="EC"), id="the wrong kind"),
        pytest.param(RSA.jwk(kty=["RSA"]), id="a list for a kind"),
        pytest.param(rsa_key("short", 1024).jwk(), id="1024 bits"),
        pytest.param(EC.jwk(kty="RSA"), id="EC that says RSA"),
        pytest.param(EC.jwk(x=EC.jwk()["y"]), id="a point off the curve"),
        pytest.param(EC.jwk(crv=None), id="no curve"),
        pytest.param(ec_key("p384", ec.SECP384R1).jwk(), id="P-384"),
        pytest.param(ec_key("p384", ec.SECP384R1).jwk(alg="ES256"), id="P-384 that says ES256"),
        pytest.param({"kty": "oct", "k": "c2VjcmV0" * 6, "kid": "oct", "alg": "HS256"}, id="a secret"),
        pytest.param({"kty": "OKP", "crv": "Ed25519", "x": "A" * 43, "kid": "ed"}, id="Ed25519"),
        pytest.param({}, id="nothing"),
        pytest.param(["RSA"], id="a list"),
        pytest.param(None, id="null"),
    ],
)
def test_a_key_that_cannot_be_used_is_left_out(jwk: Any) -> None:
    with pytest.raises(ValueError, match="no key that can be used"):
        parse_jwks(jwks(jwk))
    kept = parse_jwks(jwks(jwk, rsa_key("next")))  # and takes no other with it
    assert [key.key_id for _, key in kept._keys] == [None]
    assert "next" in kept


@pytest.mark.parametrize(
    "jwk",
    [
        pytest.param(RSA.jwk(), id="RSA"),
        pytest.param(EC.jwk(), id="EC"),
        pytest.param(RSA.jwk(use=None, alg=None, key_ops=None), id="nothing said of its use"),
        pytest.param(RSA.jwk(x5c=["x"], x5t="y", ext=True), id="more said than is read"),
        pytest.param({**RSAAlgorithm.to_jwk(RSA.private, as_dict=True), "key_ops": None, "kid": "rsa"}, id="private"),
    ],
)
def test_a_key_that_can_be_used_is_kept_without_its_private_half(jwk: dict[str, Any]) -> None:
    key = parse_jwks(jwks(jwk)).find(jwk["kid"], "ES256" if jwk["kty"] == "EC" else "RS256")
    assert key is not None
    assert not hasattr(key.key, "sign")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": 5}',
        b"[" * 99999,
        jwks(RSA) + b" " * 300_000,
        b"\xff",
    ],
)
def test_a_document_without_keys_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it "):
        parse_jwks(document)


# ---- keys in a file


async def test_a_file_that_has_changed_is_read_again_at_most_once_a_second(tmp_path: Path) -> None:
    clock = Clock()
    path = write_jwks(tmp_path / "jwks.json", RSA)
    keys = KeysInFile(path, clock)
    write_jwks(path, rsa_key("next"))
    clock.at += 0.9
    assert await keys.find("next", "RS256") is None
    clock.at += 0.2
    assert await keys.find("next", "RS256")
    assert await keys.find(RSA.kid, "RS256") is None, "a key that was withdrawn is believed no longer"


async def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    keys = KeysInFile(write_jwks(tmp_path / "jwks.json", RSA), clock)
    monkeypatch.setattr(keys, "_read", None)
    for _ in range(3):
        clock.at += 2
        assert await keys.find(RSA.kid, "RS256")


async def test_a_file_that_is_broken_or_gone_leaves_the_keys_and_is_told_once(tmp_path: Path, log: list[str]) -> None:
    clock = Clock()
    path = write_jwks(tmp_path / "jwks.json", RSA)
    keys = KeysInFile(path, clock)

    async def works_on() -> list[str]:
        log.clear()
        for _ in range(3):
            clock.at += 2
            assert await keys.find(RSA.kid, "RS256")
        return log[:]

    path.write_bytes(b"{")
    (line,) = await works_on()
    assert line.startswith("WARNING ")
    assert "it cannot be read as a JWKS" in line
    path.unlink()
    (line,) = await works_on()
    assert "No such file" in line
    write_jwks(path, rsa_key("next"), RSA)
    (line,) = await works_on()
    assert line.startswith("INFO ")
    assert await keys.find("next", "RS256")


async def test_a_file_that_is_older_than_the_one_before_is_read_again(tmp_path: Path) -> None:
    clock = Clock()
    path, aside = write_jwks(tmp_path / "jwks.json", RSA), tmp_path / "aside"
    keys = KeysInFile(path, clock)
    os.link(path, aside)
    write_jwks(path, rsa_key("next"))
    clock.at += 2
    assert await keys.find(RSA.kid, "RS256") is None
    aside.replace(path)
    clock.at += 2
    assert await keys.find(RSA.kid, "RS256")


# ---- keys from the issuer's address


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer(RSA) as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fetched(issuer: Issuer, clock: Clock) -> KeysAtUrl:
    return KeysAtUrl(issuer.url, clock)


def at_once(finding: Coroutine[Any, Any, PyJWK | None]) -> PyJWK | None:
    """What is found without a wait."""
    try:
        finding.send(None)
    except StopIteration as found:
        key: PyJWK | None = found.value
        return key
    finding.close()
    raise AssertionError("it waits")


async def until(event: Any) -> None:
    assert await asyncio.to_thread(event.wait, 10)


async def end_of_fetch(keys: KeysAtUrl) -> None:
    """Wait for the fetch that goes on behind the requests."""
    await jwt_keys._end_of(keys._fetch)


async def test_all_who_need_keys_share_one_fetch(issuer: Issuer, fetched: KeysAtUrl) -> None:
    issuer.answers.clear()
    waiting = [asyncio.create_task(fetched.find(RSA.kid, "RS256")) for _ in range(100)]
    await until(issuer.asked)
    more = [asyncio.create_task(fetched.find(RSA.kid, "RS256")) for _ in range(100)]
    waiting[0].cancel()  # one that is given up leaves the others
    issuer.answers.set()
    found = await asyncio.gather(*waiting, *more, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(getattr(key, "algorithm_name", None) == "RS256" for key in found[1:])
    assert issuer.requests == 1


async def test_a_new_key_is_found_at_once(issuer: Issuer, fetched: KeysAtUrl) -> None:
    """No time goes by between the first fetch and this."""
    assert await fetched.find(RSA.kid, "RS256")
    issuer.publish(RSA, rsa_key("next"))
    assert await fetched.find("next", "RS256")
    assert issuer.requests == 2


async def test_many_unknown_keys_cause_one_fetch(issuer: Issuer, clock: Clock, fetched: KeysAtUrl) -> None:
    await fetched.find(RSA.kid, "RS256")
    burst = await asyncio.gather(*(fetched.find(f"unknown-{i}", "RS256") for i in range(500)))
    one_by_one = [await fetched.find(f"unknown-{i}", "RS256") for i in range(500)]
    clock.at += 9.9
    await fetched.find("unknown", "ES256")
    assert set(burst) | set(one_by_one) == {None}
    assert issuer.requests == 2
    issuer.publish(RSA, rsa_key("next"))
    clock.at += 0.2
    assert await fetched.find("next", "RS256")
    assert issuer.requests == 3


async def test_a_known_kid_with_another_algorithm_causes_no_fetch(issuer: Issuer, fetched: KeysAtUrl) -> None:
    await fetched.find(RSA.kid, "RS256")
    assert await fetched.find(RSA.kid, "ES256") is None
    assert await fetched.find(None, "ES256") is None
    assert issuer.requests == 1


async def test_unknown_keys_cause_no_second_fetch_beside_one_that_is_slow(
    issuer: Issuer, clock: Clock, fetched: KeysAtUrl
) -> None:
    await fetched.find(RSA.kid, "RS256")
    issuer.answers.clear()
    issuer.asked.clear()
    first = asyncio.create_task(fetched.find("unknown", "RS256"))
    await until(issuer.asked)
    clock.at += 60
    second = asyncio.create_task(fetched.find("next", "RS256"))
    await asyncio.sleep(0)  # it has begun to wait
    issuer.publish(rsa_key("next"))
    issuer.answers.set()
    assert await first is None
    assert await second
    assert issuer.requests == 2


async def test_who_has_a_known_key_waits_for_no_fetch(issuer: Issuer, clock: Clock, fetched: KeysAtUrl) -> None:
    """Neither for one that somebody else has caused, nor for the one that it causes itself."""
    await fetched.find(RSA.kid, "RS256")
    issuer.answers.clear()
    issuer.asked.clear()
    stranger = asyncio.create_task(fetched.find("unknown", "RS256"))
    await until(issuer.asked)
    assert at_once(fetched.find(RSA.kid, "RS256"))
    assert not stranger.done()
    issuer.answers.set()
    assert await stranger is None

    issuer.answers.clear()
    issuer.asked.clear()
    clock.at += jwt_keys.REFRESH + 1
    assert at_once(fetched.find(RSA.kid, "RS256"))
    await until(issuer.asked)
    assert at_once(fetched.find(RSA.kid, "RS256"))
    issuer.publish(rsa_key("next"))
    issuer.answers.set()
    await end_of_fetch(fetched)
    assert issuer.requests == 3
    assert await fetched.find("next", "RS256")
    assert await fetched.find(RSA.kid, "RS256") is None, "a key that was withdrawn is believed no longer"


async def test_after_a_pause_a_key_that_was_withdrawn_is_believed_by_nobody(
    issuer: Issuer, clock: Clock, fetched: KeysAtUrl
) -> None:
    """While nobody came nobody fetched. Who comes first waits for the keys, and so does who comes meanwhile."""
    await fetched.find(RSA.kid, "RS256")
    issuer.publish(rsa_key("next"))
    issuer.answers.clear()
    issuer.asked.clear()
    clock.at += jwt_keys.PAUSE + 1
    first = asyncio.create_task(fetched.find(RSA.kid, "RS256"))
    await until(issuer.asked)
    second = asyncio.create_task(fetched.find(RSA.kid, "RS256"))
    await asyncio.sleep(0)
    assert not first.done()
    issuer.answers.set()
    assert (await first, await second) == (None, None)
    assert issuer.requests == 2


async def test_after_a_pause_a_stop_waits_once_for_an_issuer_that_is_gone(
    issuer: Issuer, clock: Clock, fetched: KeysAtUrl
) -> None:
    await fetched.find(RSA.kid, "RS256")
    issuer.stop()
    clock.at += jwt_keys.PAUSE + 1
    assert await fetched.find(RSA.kid, "RS256")
    clock.at += jwt_keys.AGAIN
    assert at_once(fetched.find(RSA.kid, "RS256"))
    await end_of_fetch(fetched)


async def test_keys_are_fetched_again_after_five_minutes_of_use(
    issuer: Issuer, clock: Clock, fetched: KeysAtUrl
) -> None:
    await fetched.find(RSA.kid, "RS256")
    clock.at += 299
    await fetched.find(RSA.kid, "RS256")
    await end_of_fetch(fetched)
    assert issuer.requests == 1
    clock.at += 2
    await fetched.find(RSA.kid, "RS256")
    await end_of_fetch(fetched)
    assert issuer.requests == 2


async def test_known_keys_go_on_for_a_day_while_the_issuer_is_down(
    issuer: Issuer, clock: Clock, fetched: KeysAtUrl, log: list[str]
) -> None:
    await fetched.find(RSA.kid, "RS256")
    issuer.stop()
    for hours in (1, 12, 23.9):
        clock.at = Clock.at + hours * 3600
        log.clear()
        assert await fetched.find(RSA.kid, "RS256")
        await end_of_fetch(fetched)
        assert len(log) == 1
        assert re.fullmatch(r"WARNING error=<.*refused.*> \| the issuer's keys cannot be fetched", log[0])
    clock.at = Clock.at + 24.1 * 3600
    with pytest.raises(ConnectionError):
        await fetched.find(RSA.kid, "RS256")
    issuer.start()
    clock.at += 1
    assert await fetched.find(RSA.kid, "RS256")


async def test_an_issuer_that_is_down_is_not_asked_with_every_request(
    issuer: Issuer, clock: Clock, fetched: KeysAtUrl, log: list[str]
) -> None:
    await fetched.find(RSA.kid, "RS256")
    issuer.stop()
    clock.at += 3600
    for _ in range(50):
        assert await fetched.find(RSA.kid, "RS256")
        await end_of_fetch(fetched)
    assert len(log) == 1
    clock.at += jwt_keys.AGAIN
    await fetched.find(RSA.kid, "RS256")
    await end_of_fetch(fetched)
    assert len(log) == 2


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param({"status": 500}, "HTTPError: HTTP Error 500", id="an error"),
        pytest.param({"status": 204}, "it cannot be read as a JWKS", id="nothing"),
        pytest.param({"body": b"<html>"}, "it cannot be read as a JWKS", id="a page"),
        pytest.param({"body": b'{"keys": []}'}, "it holds no key", id="no keys"),
        pytest.param({"body": b" " * 300_000}, "the answer is larger than 256 KiB", id="too much"),
        pytest.param(
            {"body": b" " * 300_000, "headers": {"Content-Length": "9999999999"}}, "the answer is larger", id="much"
        ),
        pytest.param({"headers": {"Content-Length": "5"}}, "it cannot be read as a JWKS", id="half of it"),
    ],
)
async def test_an_answer_that_is_no_jwks_leaves_the_keys(
    issuer: Issuer, clock: Clock, fetched: KeysAtUrl, log: list[str], answer: dict[str, Any], told: str
) -> None:
    await fetched.find(RSA.kid, "RS256")
    for name, value in answer.items():
        setattr(issuer, name, value)
    clock.at += 600
    assert await fetched.find("unknown", "RS256") is None
    assert await fetched.find(RSA.kid, "RS256")
    (line,) = log
    assert told in line


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(issuer: Issuer, fetched: KeysAtUrl, status: int) -> None:
    with Issuer(RSA) as elsewhere:
        issuer.status, issuer.headers = status, {"Location": elsewhere.url}
        with pytest.raises(ConnectionError):
            await fetched.find(RSA.kid, "RS256")
        assert (issuer.requests, elsewhere.requests) == (1, 0)


async def test_an_answer_that_does_not_begin_is_given_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt_keys, "TIMEOUT", 0.05)
    issuer.answers.clear()
    async with asyncio.timeout(5):
        with pytest.raises(OSError, match="timed out"):
            await asyncio.to_thread(jwt_keys.read_url, issuer.url)


def test_an_answer_that_comes_in_drops_is_given_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes two seconds on with every look."""
    clock = Mock(monotonic=Mock(side_effect=range(0, 100, 2)))
    monkeypatch.setattr(jwt_keys, "time", clock)
    issuer.body = b" " * 200_000
    with pytest.raises(TimeoutError, match="the answer takes too long"):
        jwt_keys.read_url(issuer.url)


async def test_nobody_waits_longer_than_a_request_may(
    issuer: Issuer, fetched: KeysAtUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where looking up the issuer's name takes its time, which no timeout of a socket limits."""
    monkeypatch.setattr(jwt_keys, "PATIENCE", 0.05)
    issuer.answers.clear()
    with pytest.raises(ConnectionError):
        await fetched.find(RSA.kid, "RS256")
    issuer.answers.set()
    await end_of_fetch(fetched)
    assert await fetched.find(RSA.kid, "RS256")
    assert issuer.requests == 1


async def test_no_proxy_is_asked_for_keys_of_this_machine(
    issuer: Issuer, fetched: KeysAtUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Issuer(rsa_key("attacker")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert await fetched.find(RSA.kid, "RS256")
        assert proxy.requests == 0


def test_keys_are_shared_by_one_event_loop_after_another(fetched: KeysAtUrl, issuer: Issuer) -> None:
    """A fetch that a loop has left behind holds up nobody in the next."""
    issuer.answers.clear()

    async def given_up() -> None:
        asking_for_it = asyncio.create_task(fetched.find(RSA.kid, "RS256"))
        await until(issuer.asked)
        asking_for_it.cancel()

    asyncio.run(given_up())
    issuer.answers.set()
    assert asyncio.run(fetched.find(RSA.kid, "RS256"))
    assert issuer.requests == 1


async def test_where_no_thread_is_left_known_keys_go_on(
    clock: Clock, fetched: KeysAtUrl, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    await fetched.find(RSA.kid, "RS256")

    def start(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(jwt_keys.Thread, "start", start)
        clock.at += 600
        assert await fetched.find(RSA.kid, "RS256")
        assert await fetched.find("unknown", "RS256") is None
    assert "can't start new thread" in log[0]
    clock.at += 60
    await fetched.find(RSA.kid, "RS256")
    await end_of_fetch(fetched)
    assert len(log) == 2
