"""Who may read and stop what: every call by every kind of caller, and chats of the same name that never meet."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import redis.asyncio as redis

from tests.contract.client import (
    DONE,
    STOPPED,
    live_run,
    new_chat,
    new_run,
    say,
    script,
    stop,
    until,
)
from tests.contract.guarded import FULL, Guarded, at, running_guarded
from tests.credentials import api_key, bearer, claims, ec_key, rsa_key, token
from tests.stack import Replica

HI = script(chunks=["Hello"])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with running_guarded(Path(tmp_path_factory.mktemp("guarded"))) as running:
        yield running


@pytest.fixture
async def bus(guarded: Guarded) -> AsyncIterator[redis.Redis]:
    made = redis.from_url(guarded.stack.redis_url, decode_responses=True)
    yield made
    await made.aclose()


# ---- every call by every kind of caller

Call = tuple[str, str, Any]
# By name: method, path, body. {chat} is one of ada's. Deletion is last, it is done.
CALLS: dict[str, Call] = {
    "status": ("GET", "api/v1/chat/{chat}", None),
    "messages": ("GET", "api/v1/chat/{chat}/messages", None),
    "list": ("GET", "api/v1/chats", None),
    "list of live ones": ("GET", "api/v1/chats?status=running", None),
    "stop": ("POST", "api/v1/stop/{chat}?wait=5", None),
    "stop of a run": ("POST", "api/v1/stop/{chat}?wait=5&run_id={run}", None),
    "stop of another's": ("POST", "api/v1/stop/{chat}?wait=5&principal=ada", None),
    "bulk stop": ("POST", "api/v1/stop/bulk?wait=5", {"chat_ids": ["{chat}"]}),
    "bulk stop of another's": ("POST", "api/v1/stop/bulk?wait=5&principal=ada", {"chat_ids": ["{chat}"]}),
    "stop of all": ("POST", "api/v1/stop/all", None),
    "metrics": ("GET", "metrics", None),
    "no call": ("GET", "api/v1/nothing", None),
    "no chat": ("GET", "api/v1/chat/..%2Fx", None),
    "a message without a body": ("POST", "api/v1/chat/{chat}", None),
    "a message": ("POST", "api/v1/chat/{chat}", {"message": HI}),
    "delete": ("DELETE", "api/v1/chat/{chat}", None),
}
OPEN: dict[str, Call] = {
    name: ("GET", path, None)
    for name, path in {
        "live": "live",
        "health": "health",
        "health of the API": "api/v1/health",
        "page": "",
        "its script": "static/app.js",
        "docs": "docs",
        "schema": "openapi.json",
    }.items()
}
# What each call answers ada, whose chat it is, then bob, then the admin ops.
GRANTED: dict[str, tuple[int, int, int]] = {
    **dict.fromkeys(CALLS, (200, 200, 200)),
    **dict.fromkeys(("stop of another's", "bulk stop of another's", "stop of all", "metrics"), (403, 403, 200)),
    **dict.fromkeys(("no call", "no chat"), (404, 404, 404)),
    "a message without a body": (422, 422, 422),
}


def bad_keys(guarded: Guarded) -> dict[str, dict[str, str]]:
    """Headers that are no credential of an API key."""
    ada = guarded.people["ada"]
    return {
        "none": {},
        "an empty one": {"Authorization": ""},
        "a scheme without a key": {"Authorization": "Bearer"},
        "Basic": {"Authorization": f"Basic {ada.key}"},
        "the key alone": {"Authorization": ada.key},
        "a wrong key": bearer(api_key("ada").key),
        "the hash in the place of the key": bearer(ada.hex),
        "a key with something behind it": bearer(f"{ada.key}0"),
        "a key and another": {"Authorization": f"Bearer {ada.key} {ada.key}"},
        "a token": guarded.token_of("ada"),
        "the name": bearer("ada"),
        "a header of a front door": {
            "x-amzn-request-context": '{"authorizer":{"claims":{"sub":"ada","cognito:groups":"admin"}}}',
            "x-forwarded-user": "ada",
            "x-principal": "ada",
        },
    }


def bad_tokens(guarded: Guarded) -> dict[str, dict[str, str]]:
    """Headers that are no credential of a token."""
    now, key = int(time.time()), rsa_key()
    stranger = rsa_key("stranger")
    good = token(key, sub="ada")
    head, body, signature = good.split(".")
    by_hmac = f"{_encoded({'alg': 'HS256', 'typ': 'JWT', 'kid': 'rsa'})}.{body}"
    confused = f"{by_hmac}.{_base64(hmac.digest(key.pem, by_hmac.encode(), 'sha256'))}"
    unsigned = {
        f"alg {alg!r}": bearer(f"{_encoded({'alg': alg, 'typ': 'JWT', 'kid': 'rsa'})}.{body}.")
        for alg in ("none", "None", "nOnE", "")
    }
    return {
        "none": {},
        "Basic": {"Authorization": f"Basic {good}"},
        "expired": bearer(token(key, sub="ada", exp=now - 60)),
        "not yet valid": bearer(token(key, sub="ada", nbf=now + 600)),
        "without an end": bearer(token(key, sub="ada", exp=None)),
        "a wrong audience": bearer(token(key, sub="ada", aud="another")),
        "no audience": bearer(token(key, sub="ada", aud=None)),
        "a wrong issuer": bearer(token(key, sub="ada", iss="https://elsewhere.example/")),
        "nobody": bearer(token(key, sub=None)),
        "signed by a stranger": bearer(token(stranger, sub="ada", headers={"kid": "rsa"})),
        "signed by a stranger on a curve": bearer(token(ec_key(), sub="ada", headers={"kid": "rsa"})),
        "a stranger's key inside": bearer(token(stranger, sub="ada", headers={"kid": "rsa", "jwk": stranger.jwk()})),
        "key confusion": bearer(confused),
        "another signature": bearer(f"{head}.{body}.{signature[:-8]}AAAAAAAA"),
        "another body": bearer(f"{head}.{_encoded(claims(sub='bob'))}.{signature}"),
        "an API key": guarded.key_of("ada"),
        **unsigned,
    }


def _encoded(content: dict[str, Any]) -> str:
    return _base64(json.dumps(content).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


async def asked(
    http: httpx.AsyncClient, replica: Replica, call: Call, chat: str, headers: dict[str, str]
) -> httpx.Response:
    method, path, body = call
    path = path.replace("{chat}", chat).replace("{run}", RUN)
    if body and "chat_ids" in body:
        body = {"chat_ids": [chat]}
    return await http.request(method, f"{replica.url}/{path}", json=body, headers=headers)


RUN = new_run()


async def kept(bus: redis.Redis) -> dict[str, bytes]:
    """What lies in Redis, but for the heartbeats of replicas."""
    names = [key async for key in bus.scan_iter(count=1000) if not key.startswith("replica:")]
    return {name: await bus.dump(name) for name in names}


@pytest.mark.parametrize("by", ["keys", "tokens"])
async def test_without_a_valid_credential_every_call_is_refused_alike(
    guarded: Guarded, http: httpx.AsyncClient, bus: redis.Redis, by: str
) -> None:
    replica: Replica = getattr(guarded, by)
    headers_of = guarded.key_of if by == "keys" else guarded.token_of
    bad = bad_keys(guarded) if by == "keys" else bad_tokens(guarded)
    chat = new_chat()
    assert (await say(http, replica, chat, HI, headers=headers_of("ada"))).closing == [DONE]
    before = await kept(bus)
    answers = {
        (kind, name): await asked(http, replica, call, chat, headers)
        for kind, headers in bad.items()
        for name, call in CALLS.items()
    }
    wrong = {key: (a.status_code, a.text) for key, a in answers.items() if a.status_code != 401}
    assert not wrong
    assert len({(a.text, a.headers["www-authenticate"], a.headers["x-replica"]) for a in answers.values()}) == 1
    # Nothing has come of any of them.
    assert await kept(bus) == before
    for name, call in OPEN.items():
        for kind in ("none", next(reversed(bad))):
            answer = await asked(http, replica, call, chat, bad[kind])
            assert (name, kind, answer.status_code) == (name, kind, 200)
            assert "live_runs" not in answer.text or name == "schema"  # who runs what is nobody else's affair


@pytest.mark.parametrize("by", ["keys", "tokens"])
async def test_what_each_call_grants_the_owner_another_and_an_admin(
    guarded: Guarded, http: httpx.AsyncClient, by: str
) -> None:
    replica: Replica = getattr(guarded, by)
    headers_of = guarded.key_of if by == "keys" else guarded.token_of
    chat, found = new_chat(), {}
    for n, person in enumerate(("bob", "ops", "ada")):  # the owner is the last to delete
        column = (1, 2, 0)[n]
        assert (await say(http, replica, chat, HI, headers=headers_of("ada"))).closing == [DONE]
        for name, call in CALLS.items():
            if name == "delete" and person != "ada":
                await say(http, replica, chat, HI, headers=headers_of(person))  # of its own
            answer = await asked(http, replica, call, chat, headers_of(person))
            found[person, name] = answer.status_code
            assert found[person, name] == GRANTED[name][column], (person, name, answer.text)
        for name, call in OPEN.items():
            assert (await asked(http, replica, call, chat, headers_of(person))).status_code == 200, name
    # What the others deleted and wrote was theirs: ada's was there until she deleted it.
    ada = await http.get(at(replica, f"chat/{chat}"), headers=headers_of("ada"))
    assert ada.json() == {"chat_id": chat, "status": "new", "message_count": 0}


# ---- two principals may use the same id


async def test_two_may_use_the_same_chat_id_at_once_and_never_meet(
    guarded: Guarded, http: httpx.AsyncClient, bus: redis.Redis
) -> None:
    """The one by a key at one replica, the other by a token at another; both with a live run."""
    chat, run = new_chat(), new_run()
    ada, bob = guarded.key_of("ada"), guarded.token_of("bob")
    async with (
        live_run(http, guarded.keys, chat, headers=ada, run_id=run) as hers,
        live_run(http, guarded.tokens, chat, headers=bob, run_id=run) as his,
    ):
        assert (await status_as(http, guarded.tokens, chat, "ada"))["run_id"] == hers.run_id
        live = await http.get(at(guarded.keys, "chats?status=running"), headers=bob | guarded.key_of("bob"))
        assert [c["chat_id"] for c in live.json()["chats"]] == [chat]
        # By time, by the run's own id, of many, with a wait: each halts the run of who sends it.
        answer = await stop(http, guarded.keys, chat, headers=guarded.key_of("bob"), wait="5", run_id=run)
        assert (answer["chat_id"], answer["status"]) == (chat, "stopped")
        assert (await his.finish()).closing == [STOPPED]
        hers.events.clear()
        await hers.first_text()  # goes on
        again = await stop(http, guarded.tokens, chat, headers=bob, wait="5")
        assert again["status"] == "idle"
        hers.events.clear()
        await hers.first_text()
        many = await http.post(at(guarded.tokens, "stop/bulk?wait=5"), json={"chat_ids": [chat]}, headers=bob)
        assert [r["status"] for r in many.json()["results"]] == ["idle"]
        deleted = await http.delete(at(guarded.tokens, f"chat/{chat}"), headers=bob)
        assert deleted.json() == {"status": "deleted", "chat_id": chat}
        gone = await http.delete(at(guarded.tokens, f"chat/{chat}"), headers=bob)
        assert gone.status_code == 404
        hers.events.clear()
        await hers.first_text()
        # And by hand, under her own name alone.
        await bus.set(f"stop:bob/{chat}", int(time.time() * 1000))
        await bus.set(f"stop:{chat}", int(time.time() * 1000))
        hers.events.clear()
        await hers.first_text()
        await bus.set(f"stop:ada/{chat}", int(time.time() * 1000))
        assert (await hers.finish()).closing == [STOPPED]
    hers_now = await http.get(at(guarded.keys, f"chat/{chat}/messages"), headers=ada)
    assert [m["role"] for m in hers_now.json()["messages"]] == ["user", "assistant"]
    assert hers_now.json()["messages"][1]["stopped"]
    assert (await http.get(at(guarded.keys, f"chat/{chat}/messages"), headers=guarded.key_of("bob"))).json() == {
        "chat_id": chat,
        "messages": [],
    }
    # Whatever lies in Redis of these two has its owner in its name.
    plain = [key async for key in bus.scan_iter(f"*{chat}*") if "ada/" not in key and "bob/" not in key]
    assert plain == [f"stop:{chat}"]  # set by hand above


async def status_as(http: httpx.AsyncClient, replica: Replica, chat: str, name: str) -> dict[str, Any]:
    answer = await http.get(at(replica, f"chat/{chat}"), headers=Guarded.token_of(name))
    found: dict[str, Any] = answer.json()
    return found


async def test_a_key_and_a_token_of_one_name_are_one_principal(guarded: Guarded, http: httpx.AsyncClient) -> None:
    chat = new_chat()
    await say(http, guarded.keys, chat, HI, headers=guarded.key_of("ada"))
    assert (await status_as(http, guarded.tokens, chat, "ada"))["message_count"] == 2
    assert (await status_as(http, guarded.tokens, chat, "bob"))["status"] == "new"


@pytest.mark.parametrize("name", ["ada/x", "../ada", "..", "ada%2Fx", "{ada}", "*", "ada bob", "ädä", "A" * 256])
async def test_any_name_of_a_principal_has_chats_of_its_own(
    guarded: Guarded, http: httpx.AsyncClient, name: str
) -> None:
    chat = new_chat()
    headers = bearer(token(rsa_key(), sub=name))
    assert (await say(http, guarded.tokens, chat, HI, headers=headers)).closing == [DONE]
    listed = (await http.get(at(guarded.tokens, "chats"), headers=headers)).json()
    assert [c["chat_id"] for c in listed["chats"]] == [chat]
    assert (await status_as(http, guarded.tokens, chat, "ada"))["status"] == "new"
    async with live_run(http, guarded.tokens, chat, headers=headers) as turn:
        answer = await http.post(
            at(guarded.tokens, f"stop/{chat}"), params={"wait": "5", "principal": name}, headers=guarded.token_of("ops")
        )
        assert answer.json()["status"] == "stopped"
        assert (await turn.finish()).closing == [STOPPED]
    assert (await http.delete(at(guarded.tokens, f"chat/{chat}"), headers=headers)).status_code == 200


# ---- an admin


async def test_an_admin_stops_what_is_anothers_and_reads_nothing_of_it(
    guarded: Guarded, http: httpx.AsyncClient
) -> None:
    chat = new_chat()
    ops = guarded.key_of("ops")
    async with live_run(http, guarded.tokens, chat, headers=guarded.token_of("ada")) as turn:
        assert (await stop(http, guarded.keys, chat, headers=ops, wait="2"))["status"] == "idle"  # the admin's own
        answer = await stop(http, guarded.keys, chat, headers=ops, wait="5", principal="ada")
        assert (answer["chat_id"], answer["status"], answer["run_id"]) == (chat, "stopped", turn.run_id)
        assert (await turn.finish()).closing == [STOPPED]
    for path in (f"chat/{chat}", f"chat/{chat}?principal=ada"):
        assert (await http.get(at(guarded.keys, path), headers=ops)).json()["status"] == "new"


@pytest.mark.parametrize("name", ["", "A" * 257])
async def test_a_principal_that_cannot_be_is_refused(guarded: Guarded, http: httpx.AsyncClient, name: str) -> None:
    headers = guarded.key_of("ops")
    answer = await http.post(at(guarded.keys, "stop/x"), params={"principal": name}, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "principal"]


async def test_the_kill_switch_halts_every_run_of_everyone_and_says_how_many(
    guarded: Guarded, http: httpx.AsyncClient
) -> None:
    chat = new_chat()
    ada, bob, ops = guarded.key_of("ada"), guarded.token_of("bob"), guarded.key_of("ops")
    people = [(guarded.keys, ada), (guarded.tokens, bob), (guarded.keys, ops)]
    async with (
        live_run(http, guarded.keys, chat, headers=ada) as hers,
        live_run(http, guarded.tokens, chat, headers=bob) as his,
        live_run(http, guarded.keys, chat, headers=ops) as own,
    ):
        for replica, headers in people:  # one that is not listed yet halts as well, and stands in no answer
            await until(partial(is_listed, http, replica, headers, chat))
        one_persons = await http.post(at(guarded.keys, "stop/all?principal=bob"), headers=ops)
        assert one_persons.status_code == 422  # it would be everybody's
        answer = (await http.post(at(guarded.tokens, "stop/all"), headers=guarded.token_of("ops"))).json()
        assert {k: v for k, v in answer.items() if k != "results"} == {"total": 3, "confirmed": 3, "failed": 0}
        assert sorted((r["principal"], r["chat_id"], r["status"]) for r in answer["results"]) == [
            (name, chat, "stopped") for name in ("ada", "bob", "ops")
        ]
        for turn in (hers, his, own):
            assert (await turn.finish()).closing == [STOPPED]
    nothing = (await http.post(at(guarded.keys, "stop/all"), headers=guarded.key_of("ops"))).json()
    assert nothing == {"total": 0, "confirmed": 0, "failed": 0, "results": []}
    for replica, headers in people:  # a stop of all is no ban
        assert (await say(http, replica, chat, HI, headers=headers)).closing == [DONE]


async def is_listed(http: httpx.AsyncClient, replica: Replica, headers: dict[str, str], chat: str) -> bool:
    live = (await http.get(at(replica, "chats?status=running"), headers=headers)).json()
    return chat in [c["chat_id"] for c in live["chats"]]


async def test_without_auth_everyone_may_stop_all_and_nobody_is_named(stack: Any, http: httpx.AsyncClient) -> None:
    one: Replica = stack.replicas[0]
    answer = await http.post(at(one, "stop/x"), params={"principal": "ada"})
    assert answer.status_code == 422
    chat = new_chat()
    async with live_run(http, one, chat) as turn:
        await until(lambda: is_listed(http, one, {}, chat))
        answer = await http.post(at(one, "stop/all"))
        assert {"chat_id": chat, "status": "stopped"} in answer.json()["results"]
        assert (await turn.finish()).closing == [STOPPED]


# ---- guesses


@pytest.mark.timeout(600)
async def test_guesses_learn_nothing(guarded: Guarded, http: httpx.AsyncClient, bus: redis.Redis) -> None:
    """Of ids that are another's, live and at rest, and of ids that nobody has used: word for word the same."""
    used, live, ada, bob = new_chat(), new_chat(), guarded.key_of("ada"), guarded.key_of("bob")
    await say(http, guarded.keys, used, HI, headers=ada)
    guesses = {name: call for name, call in CALLS.items() if name not in ("a message", "list", "list of live ones")}
    async with live_run(http, guarded.keys, live, headers=ada) as turn:
        for _ in range(260 if FULL else 5):  # times 13 calls, times three
            for name, call in guesses.items():
                told = set()
                for chat in (used, live, new_chat()):
                    answer = await asked(http, guarded.keys, call, chat, bob)
                    headers = {k: v for k, v in answer.headers.items() if k not in ("date", "content-length")}
                    told.add((answer.status_code, answer.text.replace(chat, "X"), str(sorted(headers))))
                assert len(told) == 1, (name, told)
        turn.events.clear()
        await turn.first_text()  # none of them has stopped it
    assert (await http.get(at(guarded.keys, f"chat/{used}"), headers=ada)).json()["message_count"] == 2


async def test_a_guess_asks_redis_for_the_same_whatever_it_names(
    guarded: Guarded, http: httpx.AsyncClient, bus: redis.Redis
) -> None:
    """The time that an answer takes is that of what it asks for: the same commands, over keys of the guesser's own."""
    used, live, ada, bob = new_chat(), new_chat(), guarded.key_of("ada"), guarded.key_of("bob")
    await say(http, guarded.keys, used, HI, headers=ada)
    async with live_run(http, guarded.keys, live, headers=ada):
        seen = {}
        for name in ("status", "messages", "stop", "delete"):
            for chat in (used, live, new_chat()):
                async with bus.monitor() as monitor:
                    await asked(http, guarded.keys, CALLS[name], chat, bob)
                    await bus.ping()
                    commands = []
                    async for told in monitor.listen():
                        if told["command"] == "PING":
                            break
                        if f"bob/{chat}" in told["command"]:  # beside the looks for her live run
                            commands.append(told["command"].split()[0])
                seen.setdefault(name, []).append(commands)
        assert all(len(c) > 0 and c[0] == c[1] == c[2] for c in seen.values()), seen


async def test_a_run_whose_replica_died_is_none_that_was_stopped(
    guarded: Guarded, http: httpx.AsyncClient, bus: redis.Redis
) -> None:
    """It stands in the list of live ones until its chat is used again."""
    await bus.hset("live:{chats}", f"ada/{new_chat()}", "1")
    answer = await http.post(at(guarded.keys, "stop/all"), headers=guarded.key_of("ops"))
    assert answer.json() == {"total": 0, "confirmed": 0, "failed": 0, "results": []}
