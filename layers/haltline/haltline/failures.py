"""An error of a run in words for a person: what happened and which setting to change. Pure.

Errors are told by name and by botocore's error code, so that no provider's library need be imported here.
"""

from __future__ import annotations

from collections.abc import Iterator

from haltline.events import valid_text

_BY_NAME = {
    "ModelThrottledException": "The model provider is throttling requests. Try again in a moment.",
    "ContextWindowOverflowException": "The conversation is too long for this model. Start a new chat.",
    "MaxTokensReachedException": "The answer reached MAX_OUTPUT_TOKENS. Send another message to go on.",
    "NoCredentialsError": "No AWS credentials were found. Set AWS_PROFILE, or MODEL_PROVIDER=local to run without AWS.",
    "PartialCredentialsError": "The AWS credentials are incomplete. Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    "ProfileNotFound": "The AWS profile was not found. Check AWS_PROFILE.",
    "EndpointConnectionError": "The model's endpoint cannot be reached. Check AWS_REGION and the network.",
    "APIConnectionError": "The local model server cannot be reached. Check LOCAL_MODEL_URL.",
    "ReadTimeoutError": "The model provider did not answer in time. Try again.",
}
_BY_CODE = {
    "AccessDeniedException": "AWS denied access to the model. Check BEDROCK_MODEL_ID, AWS_REGION and the role's policy",
    "ResourceNotFoundException": "AWS does not know this model. Check BEDROCK_MODEL_ID and AWS_REGION",
    "ExpiredTokenException": "The AWS credentials have expired. Sign in again",
    "UnrecognizedClientException": "AWS does not accept these credentials. Check AWS_PROFILE or AWS_ACCESS_KEY_ID",
    "InvalidSignatureException": "AWS does not accept these credentials. Check AWS_SECRET_ACCESS_KEY and the clock",
    "ServiceUnavailableException": "The model provider is not available now. Try again in a moment",
}
_PROFILE_NEEDED = (
    "This model only answers through an inference profile. Set BEDROCK_MODEL_ID to the profile's id, "
    "which has a prefix such as us., eu. or global."
)
_SAID_AS_THEY_ARE = {"AgentError", "ChatStoreError", "ScriptedFailure"}


def explain(error: BaseException) -> str:
    """One line for the `[ERROR]` frame. What is not known is named by its type; the log has the rest."""
    return valid_text(" ".join(_explanation(error).split()))


def _explanation(error: BaseException) -> str:
    for cause in _causes(error):
        name = type(cause).__name__
        if name in _SAID_AS_THEY_ARE:
            return str(cause)
        if isinstance(response := getattr(cause, "response", None), dict) and "Error" in response:
            return _of_aws(str(response["Error"].get("Code", "")), str(response["Error"].get("Message", "")))
        if name in _BY_NAME:
            return _BY_NAME[name]
    return f"The run failed ({type(list(_causes(error))[-1]).__name__}). The log of this replica has the details."


def _of_aws(code: str, message: str) -> str:
    if "on-demand throughput" in message or "inference profile" in message.lower():
        return _PROFILE_NEEDED
    if "hrottling" in code or code == "TooManyRequestsException":
        return _BY_NAME["ModelThrottledException"]
    text = _BY_CODE.get(code, f"The model provider refused the call ({code})")
    return f"{text}: {message[:300]}" if message else f"{text}."


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps, outermost first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = getattr(found, "original_exception", None) or found.__cause__
