"""Random requests made from the OpenAPI description of a running replica, by schemathesis."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.faults.raw_http import DEADLINE
from tests.stack import Replica


def send_random(replica: Replica, mode: str, count: int, number: int) -> Counter[int]:
    """Send three times `count` requests, `mode` "positive" or "negative". Returns how often each status came.

    Raises: an error of schemathesis, or AssertionError, for an answer that the description does not allow.
    """
    print(f"hypothesis seed {number}")
    schema = schemathesis.openapi.from_url(f"{replica.url}/openapi.json")
    text = json.dumps(schema.raw_schema)
    seen: Counter[int] = Counter()
    before: dict[str, Any] = {}
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance]

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema.as_strategy(generation_mode=GenerationMode(mode)))
    def send(case: Any) -> None:
        made = case.as_transport_kwargs(base_url=replica.url)
        response = case.call(base_url=replica.url, session=session, timeout=DEADLINE)
        seen[response.status_code] += 1
        streamed = response.headers["content-type"][0].startswith("text/event-stream")
        # A stream is described as a string; the check takes each of its events for one.
        case.validate_response(response, checks=checks if streamed else [*checks, response_schema_conformance])
        assert response.headers["x-replica"] == ["replica1"]
        if response.status_code >= 400:
            for said in _strings([case.path_parameters, case.query, case.body]):
                assert len(said) < 6 or said in text or said not in response.text, (said, response.text)
        for crossed in ("params",), ("json", "data"):
            mixed = {k: v for k, v in made.items() if k not in crossed}
            mixed |= {k: before[k] for k in crossed if k in before}
            answer = session.request(**mixed, timeout=DEADLINE)
            seen[answer.status_code] += 1
            assert answer.status_code < 500, (mixed, answer.text)
            assert answer.headers["x-replica"] == "replica1"
        before.clear()
        before.update(made)

    with requests.Session() as session:
        session.trust_env = False
        send()
    return seen


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for k, v in value.items():
                yield from _strings(k)
                yield from _strings(v)
        case list():
            for v in value:
                yield from _strings(v)
