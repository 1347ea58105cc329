"""An error of a run in words for a person: what happened and which setting to change. Pure.

Errors are told by name and by botocore's error code, so that no provider's library need be imported here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from haltline.events import valid_text


class AnswerBrokenOff(Exception):
    """The model's answer has no end, or cannot be read. What the user saw of it stays."""


_BROKEN_OFF = "The model's answer broke off before its end. Send another message to go on."
_NOT_NOW = "The model provider is not available now. Try again in a moment."
_LOCAL_FAILED = "The local model server failed. Try again; its log has the details."
_BY_NAME = {
    "AnswerBrokenOff": _BROKEN_OFF,
    "ModelThrottledException": "The model provider is throttling requests. Try again in a moment.",
    "ContextWindowOverflowException": "The conversation is too long for this model. Start a new chat.",
    "MaxTokensReachedException": "The answer reached MAX_OUTPUT_TOKENS. Send another message to go on.",
    "NoCredentialsError": "No AWS credentials were found. Set AWS_PROFILE, or MODEL_PROVIDER=local to run without AWS.",
    "PartialCredentialsError": "The AWS credentials are incomplete. Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    "ProfileNotFound": "The AWS profile was not found. Check AWS_PROFILE.",
    "EndpointConnectionError": "The model's endpoint cannot be reached. Check AWS_REGION and the network.",
    "ConnectTimeoutError": "The model's endpoint cannot be reached. Check AWS_REGION and the network.",
    "ProxyConnectionError": "The proxy on the way to the model cannot be used. Check HTTPS_PROXY and NO_PROXY.",
    "SSLError": "The model's endpoint has a certificate that is not trusted. Check AWS_CA_BUNDLE and the network.",
    "ConnectionClosedError": "The connection to the model broke off. Try again.",
    "ReadTimeoutError": "The model provider did not answer in time. Try again.",
    "APIConnectionError": "The local model server cannot be reached. Check LOCAL_MODEL_URL.",
    "APITimeoutError": "The local model server did not answer in time. Try again.",
    "InternalServerError": _LOCAL_FAILED,
    "APIError": _LOCAL_FAILED,  # said in mid-stream
    **dict.fromkeys(
        ("BadRequestError", "UnprocessableEntityError", "AuthenticationError", "PermissionDeniedError"),
        "The local model server refused the call. Check LOCAL_MODEL_ID and LOCAL_MODEL_URL; its log has the details.",
    ),
    "NotFoundError": "The local model server does not know this model. Check LOCAL_MODEL_ID and LOCAL_MODEL_URL.",
    # Of httpx, which the client of OpenAI lets through once the answer has begun.
    **dict.fromkeys(("RemoteProtocolError", "ReadError"), "The connection to the model broke off. Try again."),
    "ReadTimeout": "The local model server did not answer in time. Try again.",
}
_BY_CODE = {  # with a capital: in mid-stream they are said without
    "AccessDeniedException": "AWS denied access to the model. Check BEDROCK_MODEL_ID, AWS_REGION and the role's policy",
    "ResourceNotFoundException": "AWS does not know this model. Check BEDROCK_MODEL_ID and AWS_REGION",
}
_ALONE = {  # what AWS says besides is of no use to a user, or not for everyone's eyes
    "ExpiredTokenException": "The AWS credentials have expired. Sign in again.",
    "UnrecognizedClientException": "AWS does not accept these credentials. Check AWS_PROFILE or AWS_ACCESS_KEY_ID.",
    "InvalidSignatureException": "AWS does not accept these credentials. Check AWS_SECRET_ACCESS_KEY and the clock.",
    "ServiceQuotaExceededException": "The AWS account's quota for this model is used up. Ask for a higher one.",
    "ModelNotReadyException": "The model is not ready yet. Try again in a moment.",
    "ModelTimeoutException": "The model provider did not answer in time. Try again.",
    "ModelErrorException": "The model failed while it was answering. Try again.",
    "ModelStreamErrorException": "The model failed while it was answering. Try again.",
    **dict.fromkeys(("ServiceUnavailableException", "InternalServerException", "500", "502", "503", "504"), _NOT_NOW),
}
# JSON, HTML, addresses, names of resources and keys
_NOT_FOR_USERS = re.compile(r"[{<]|://|\barn:|\b\d+\.\d+\.\d+\.\d+\b|\b[A-Z0-9]{16,}\b|\b\d{12}\b")
_PROFILE_NEEDED = (
    "This model only answers through an inference profile. Set BEDROCK_MODEL_ID to the profile's id, "
    "which has a prefix such as us., eu. or global."
)
_SAID_AS_THEY_ARE = {"AgentError", "ScriptedFailure"}


def explain(error: BaseException) -> str:
    """One line for the `[ERROR]` frame. What is not known is named by its type; the log has the rest."""
    return valid_text(" ".join(_explanation(error).split()))


def _explanation(error: BaseException) -> str:
    for cause in _causes(error):
        name = type(cause).__name__
        if name in _SAID_AS_THEY_ARE:
            return str(cause)
        if name in ("ChatStoreError", "ChatDamaged"):
            return f"The message could not be saved: {cause}."
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
    code = code[:1].upper() + code[1:]
    if code in _ALONE:
        return _ALONE[code]
    text = _BY_CODE.get(code, "The model provider refused the call")
    return f"{text}: {message[:300]}" if message and not _NOT_FOR_USERS.search(message) else f"{text}."


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps, outermost first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = getattr(found, "original_exception", None) or found.__cause__
