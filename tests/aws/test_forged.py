"""What a client writes into the headers that Lambda speaks by, behind the real Web Adapter: nothing comes of it.

The adapter sets both headers over those that came with the request. Were it to append its own, or to leave a client's
in another case, every test of a forged header here would fail.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from local.runtime_api.environment import Environment
from local.runtime_api.invocation import Ending, Invocation
from tests.aws import events
from tests.aws.chat_function import Started, text_of
from tests.contract.client import new_chat

ADA = {
    "rest": "5d1c2f9e-8c2a-4a53-9f0b-1f6f4f1b7a11",
    "function-url": "arn:aws:iam::123456789012:user/ada",
}
HI = {"message": "Hi."}
MALLORY = json.dumps({"authorizer": {"claims": {"sub": "mallory", "cognito:groups": "admin"}}})
URL_OF_MALLORY = json.dumps({"authorizer": {"iam": {"userArn": "arn:aws:iam::1:user/mallory"}}})
DIRECT = "null"  # as the adapter says it of an invocation that came through no door
NAMES = ["x-amzn-request-context", "X-Amzn-Request-Context", "X-AMZN-REQUEST-CONTEXT"]
OTHER = ["x-amzn-lambda-context", "X-Amzn-Lambda-Context"]
FORGED: dict[str, dict[str, list[str]]] = {
    **{f"as {name}": {name: [MALLORY]} for name in NAMES},
    "of a Function URL": {NAMES[0]: [URL_OF_MALLORY]},
    "twice": {NAMES[0]: [MALLORY, URL_OF_MALLORY]},
    "in three cases": {name: [MALLORY] for name in NAMES},
    "as a direct invocation": {NAMES[1]: [DIRECT], OTHER[0]: ['{"deadline": 9999999999999}']},
    "with a deadline that is over": {name: ['{"deadline": 1}'] for name in OTHER},
}


@pytest.fixture(scope="module")
def guarded(functions: Started, layers: list[Path]) -> Environment:
    """The function as the template sets it, whose agent says for whom it works."""
    path = ":".join(map(str, [*layers, Path(__file__).parent]))
    return functions.get(AUTH="apigateway", AGENT="who_agent:make", PYTHONPATH=path)


def sent_with(event: bytes, headers: dict[str, list[str]]) -> dict[str, Any]:
    """The event with these headers as well, in each form that it has."""
    found: dict[str, Any] = json.loads(event)
    found["headers"] |= {name: ", ".join(values) for name, values in headers.items()}
    if "multiValueHeaders" in found:
        found["headers"] |= {name: values[-1] for name, values in headers.items()}
        found["multiValueHeaders"] |= headers
    return found


def answered(function: Environment, event: dict[str, Any]) -> Invocation:
    invocation = function.invoke(json.dumps(event).encode()).finish()
    assert invocation.ending is Ending.ANSWERED
    return invocation


def status_of(function: Environment, event: dict[str, Any]) -> int:
    prelude = answered(function, event).prelude
    assert prelude
    return prelude.status


@pytest.mark.parametrize("door", ADA)
def test_the_agent_works_for_whom_the_door_has_let_in(guarded: Environment, door: str) -> None:
    assert text_of(answered(guarded, json.loads(events.DOORS[door](new_chat(), HI)))) == f"for <{ADA[door]}>"


@pytest.mark.parametrize("headers", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("door", ADA)
def test_a_forged_context_changes_nothing(guarded: Environment, door: str, headers: dict[str, list[str]]) -> None:
    event = sent_with(events.DOORS[door](new_chat(), HI), headers)
    assert text_of(answered(guarded, event)) == f"for <{ADA[door]}>"


@pytest.mark.parametrize("headers", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("door", ADA)
def test_a_forged_context_lets_nobody_in(guarded: Environment, door: str, headers: dict[str, list[str]]) -> None:
    event = sent_with(events.DOORS[door](new_chat(), HI), headers)
    event["requestContext"]["authorizer"] = None
    assert status_of(guarded, event) == 401


def test_a_forged_group_makes_no_admin(guarded: Environment) -> None:
    event = sent_with(events.rest("", "", path="/api/v1/stop/all"), FORGED["in three cases"])
    assert status_of(guarded, event) == 403
    event["requestContext"]["authorizer"]["claims"]["cognito:groups"] = "users,admin"
    assert status_of(guarded, event) == 200, "who is in it may"


def alb() -> dict[str, Any]:
    """A request that a load balancer has passed on."""
    event: dict[str, Any] = json.loads(events.rest(new_chat(), HI))
    parameters = {"queryStringParameters": {}, "multiValueQueryStringParameters": {}}
    context = {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:us-west-2:1:targetgroup/x/1"}}
    return event | parameters | {"requestContext": context}


def http_api() -> dict[str, Any]:
    """An HTTP API with an authorizer for tokens: not the door that the template makes."""
    event: dict[str, Any] = json.loads(events.function_url(new_chat(), HI))
    claims = {"sub": "mallory", "cognito:groups": "[admin]"}
    event["requestContext"]["authorizer"] = {"jwt": {"claims": claims, "scopes": None}}
    return event


@pytest.mark.parametrize("door", [alb, http_api])
def test_no_other_door_can_say_who_somebody_is(guarded: Environment, door: Any) -> None:
    assert status_of(guarded, sent_with(json.dumps(door()).encode(), FORGED["in three cases"])) == 401


def unreadable() -> dict[str, Any]:
    """A REST API's, with a header that the adapter cannot read."""
    return sent_with(events.rest(new_chat(), HI | {"chat_id": "a", "principal": "mallory"}), {"x-note": ["a\nb"]})


def lattice() -> dict[str, Any]:
    """VPC Lattice's, which the adapter does not know."""
    identity = {"sourceVpcArn": "arn:aws:ec2:us-west-2:1:vpc/vpc-1", "type": "AWS_IAM", "principal": "mallory"}
    return {
        "version": "2.0",
        "path": f"/api/v1/chat/{new_chat()}",
        "method": "POST",
        "headers": {"content-type": ["application/json"], NAMES[0]: [MALLORY]},
        "body": json.dumps(HI | {"chat_id": "a", "principal": "mallory"}),
        "isBase64Encoded": False,
        "requestContext": {"serviceArn": "arn", "identity": identity, "region": "us-west-2", "timeEpoch": "1"},
    }


@pytest.mark.parametrize("event", [unreadable, lattice])
def test_a_doors_event_that_the_adapter_takes_for_a_direct_invocation_starts_nothing(
    guarded: Environment, event: Any
) -> None:
    """It hands on the whole of it as the message then. Its client has written nothing but what lies inside of that."""
    assert status_of(guarded, event()) == 422


# ---- direct invocations


@pytest.mark.parametrize(("named", "seen"), [({}, None), ({"principal": "ann"}, "ann"), ({"principal": None}, None)])
def test_a_direct_invocation_speaks_for_whom_it_names(guarded: Environment, named: Any, seen: str | None) -> None:
    assert text_of(guarded.invoke(events.direct(new_chat(), HI | named)).finish()) == f"for <{seen}>"


@pytest.mark.parametrize("name", ["", "x" * 257, 7])
def test_it_names_nobody_who_cannot_be(guarded: Environment, name: Any) -> None:
    assert status_of(guarded, json.loads(events.direct(new_chat(), HI | {"principal": name}))) == 422


def test_by_the_function_url_nobody_can_pass_for_one_who_invokes_it(guarded: Environment) -> None:
    event = json.loads(events.function_url(new_chat(), HI)) | {"rawPath": "/events"}
    event["body"] = json.dumps(HI | {"chat_id": new_chat(), "principal": "ann"})
    del event["headers"]["content-length"]
    assert status_of(guarded, event) == 422
    event["body"] = json.dumps(HI | {"chat_id": new_chat()})
    assert text_of(answered(guarded, event)) == f"for <{ADA['function-url']}>"


def test_where_nobody_is_asked_who_they_are_nobody_can_be_named(function: Environment) -> None:
    assert status_of(function, json.loads(events.direct(new_chat(), HI | {"principal": "ann"}))) == 422
