"""What `make sam-invoke` sends and how it looks at the answers."""

from __future__ import annotations

import json

import pytest

from haltline.settings import read_settings
from local.sam_local import EVENTS, EXPECTED, function_of, sample
from local.sam_template import LAYERS, local_template
from tests.template import FUNCTIONS

TEMPLATE = local_template("x86_64", {name: f"arn:of:{name}:1" for name in LAYERS})


def test_every_event_file_is_sent_to_a_function_that_is_there() -> None:
    assert {path.stem for path in EVENTS.glob("*.json")} == set(EXPECTED)
    assert {function_of(name) for name in EXPECTED} == set(FUNCTIONS) == set(TEMPLATE["Resources"])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_function_that_failed_is_noticed(name: str) -> None:
    for said in ("", "null", '{"errorMessage": "no", "errorType": "Error"}', '{"statusCode": 500, "body": "{}"}'):
        try:
            good = EXPECTED[name](said)
        except (ValueError, KeyError, TypeError, AttributeError):
            good = False
        assert not good


def test_events_come_now() -> None:
    assert sample("chat_rest")["requestContext"]["requestTimeEpoch"] > 1_780_000_000_000
    assert sample("control_eventbridge_stop")["time"] > "2026"
    assert sample("control_sns_stop")["Records"][0]["Sns"]["Timestamp"] > "2026"


def test_the_local_template_asks_nothing_of_aws() -> None:
    assert not {"Ref", "Fn::", "rediss:", "s3"} & set(json.dumps(TEMPLATE).replace('"', " ").split())
    assert set(json.dumps(TEMPLATE["Resources"]).split('"')) >= {f"arn:of:{name}:1" for name in LAYERS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_local_variables_are_settings_that_the_code_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")
    for key, value in TEMPLATE["Resources"][name]["Properties"]["Environment"]["Variables"].items():
        monkeypatch.setenv(key, value)
    settings = read_settings(_env_file=None)
    assert (settings.redis_address, settings.redis_cluster) == ("redis://redis:6379", False)
    assert (settings.model_provider, settings.session_store, settings.event_bus) == ("scripted", "file", None)
