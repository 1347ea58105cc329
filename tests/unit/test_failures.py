"""Failures: an error of a run in one line for a person, naming the setting to change."""

from __future__ import annotations

from typing import Any

import pytest

from haltline.failures import explain


def error_named(name: str, text: str = "internal detail", **attributes: Any) -> Exception:
    """An error of a library, told by its class' name alone."""
    made: Exception = type(name, (Exception,), attributes)(text)
    return made


def aws_error(code: str, message: str = "") -> Exception:
    """What botocore raises."""
    return error_named("ClientError", response={"Error": {"Code": code, "Message": message}})


PROFILE_NEEDED = (
    "This model only answers through an inference profile. Set BEDROCK_MODEL_ID to the profile's id, "
    "which has a prefix such as us., eu. or global."
)
MODEL_FAILED = "The model failed while it was answering. Try again."
NOT_NOW = "The model provider is not available now. Try again in a moment."
THROTTLED = "The model provider is throttling requests. Try again in a moment."


@pytest.mark.parametrize(
    ("code", "message", "line"),
    [
        pytest.param(
            "ValidationException",
            "Invocation of model ID amazon.nova-pro-v1:0 with on-demand throughput isn't supported. Retry your request "
            "with the ID or ARN of an inference profile that contains this model.",
            PROFILE_NEEDED,
            id="a model that needs an inference profile",
        ),
        pytest.param("ValidationException", "Use an Inference Profile.", PROFILE_NEEDED, id="said in other words"),
        pytest.param("ThrottlingException", "Too many tokens", THROTTLED, id="throttled"),
        pytest.param("TooManyRequestsException", "", THROTTLED, id="too many requests"),
        pytest.param(
            "AccessDeniedException",
            "You don't have access.",
            "AWS denied access to the model. Check BEDROCK_MODEL_ID, AWS_REGION and the role's policy: "
            "You don't have access.",
            id="access denied",
        ),
        pytest.param(
            "ExpiredTokenException",
            "",
            "The AWS credentials have expired. Sign in again.",
            id="a code without a message",
        ),
        pytest.param(
            "NewException",
            "Because.",
            "The model provider refused the call: Because.",
            id="an unknown code is not said",
        ),
        pytest.param("NewException", "", "The model provider refused the call.", id="unknown, silent"),
        pytest.param(
            "NewException",
            "x" * 1000,
            f"The model provider refused the call: {'x' * 300}",
            id="a long message is cut",
        ),
        pytest.param("modelStreamErrorException", "Boom.", MODEL_FAILED, id="in mid-stream, without a capital"),
        pytest.param("ModelErrorException", "Boom.", MODEL_FAILED, id="before the stream"),
        pytest.param("503", "Service Unavailable", NOT_NOW, id="a status without a code"),
        pytest.param("internalServerException", "Boom.", NOT_NOW, id="a failure of AWS"),
        *(
            pytest.param("NewException", f"Because of {what}.", "The model provider refused the call.", id=what)
            for what in (
                '{"message": "x"}',
                "<html>",
                "https://internal.example",
                "arn:aws:iam::1:role/x",
                "10.0.0.1",
                "AKIAIOSFODNN7EXAMPLE",
                "account 123456789012",
            )
        ),
        pytest.param(
            "InvalidSignatureException",
            "The Canonical String should have been x.",
            "AWS does not accept these credentials. Check AWS_SECRET_ACCESS_KEY and the clock.",
            id="what was signed",
        ),
    ],
)
def test_what_aws_says(code: str, message: str, line: str) -> None:
    assert explain(aws_error(code, message)) == line


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("NoCredentialsError", "AWS_PROFILE"),
        ("NoCredentialsError", "MODEL_PROVIDER=local"),
        ("PartialCredentialsError", "AWS_SECRET_ACCESS_KEY"),
        ("ProfileNotFound", "AWS_PROFILE"),
        ("EndpointConnectionError", "AWS_REGION"),
        ("APIConnectionError", "LOCAL_MODEL_URL"),
        ("MaxTokensReachedException", "MAX_OUTPUT_TOKENS"),
        ("ContextWindowOverflowException", "new chat"),
        ("ModelThrottledException", "throttling"),
        ("ReadTimeoutError", "in time"),
    ],
)
def test_a_known_error_names_what_to_change_and_no_internals(name: str, setting: str) -> None:
    line = explain(error_named(name))
    assert setting in line
    assert "internal detail" not in line
    assert line.splitlines() == [line]


@pytest.mark.parametrize("name", ["AgentError", "ScriptedFailure"])
def test_an_error_of_ones_own_is_said_as_it_is(name: str) -> None:
    assert explain(error_named(name, "AGENT=a:b returned Graph.")) == "AGENT=a:b returned Graph."


def test_a_store_that_fails_is_told_in_a_sentence() -> None:
    assert explain(error_named("ChatStoreError", "it is full")) == "The message could not be saved: it is full."


def test_an_unknown_error_is_named_and_not_quoted() -> None:
    assert explain(error_named("OddError")) == "The run failed (OddError). The log of this replica has the details."


def test_the_names_are_those_of_the_libraries() -> None:
    """They are matched by name, so a library that renames one must be noticed."""
    import botocore.exceptions
    import httpx
    import openai
    import strands.types.exceptions

    from haltline import failures

    libraries = (strands.types.exceptions, botocore.exceptions, openai, httpx, failures)
    assert [name for name in failures._BY_NAME if not any(hasattr(library, name) for library in libraries)] == []


# ---- what an error wraps


def wrapping(outer: BaseException, cause: BaseException) -> BaseException:
    outer.__cause__ = cause
    return outer


def test_the_cause_is_told_where_the_error_says_nothing() -> None:
    assert (
        explain(wrapping(RuntimeError("x"), wrapping(RuntimeError("y"), aws_error("ThrottlingException")))) == THROTTLED
    )


def test_strands_wraps_by_an_attribute() -> None:
    wrapped = error_named("EventLoopException", original_exception=error_named("ScriptedFailure", "as asked"))
    assert explain(wrapped) == "as asked"


def test_the_outermost_known_error_wins() -> None:
    assert explain(wrapping(error_named("ModelThrottledException"), aws_error("AccessDeniedException"))) == THROTTLED


def test_an_unknown_error_is_named_after_its_innermost_cause() -> None:
    assert explain(wrapping(RuntimeError("x"), KeyError("y"))) == (
        "The run failed (KeyError). The log of this replica has the details."
    )


def test_errors_that_cause_each_other_end() -> None:
    one, other = RuntimeError("x"), KeyError("y")
    one.__cause__, other.__cause__ = other, one
    assert explain(one) == "The run failed (KeyError). The log of this replica has the details."


def test_a_response_of_another_library_is_not_taken_for_aws() -> None:
    assert explain(error_named("OddError", response={"status": 500})) == (
        "The run failed (OddError). The log of this replica has the details."
    )


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(error_named("ScriptedFailure", "first\nsecond"), id="of one's own"),
        pytest.param(aws_error("NewException", "first\r\nsecond"), id="of AWS"),
    ],
)
def test_an_error_of_many_lines_is_one_line(error: Exception) -> None:
    """The transcript keeps it as `error`, past the stream that would join it."""
    assert len(explain(error).splitlines()) == 1
