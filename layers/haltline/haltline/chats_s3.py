"""Chats at rest in S3: one object a chat. What guards a chat among replicas is S3's own condition on each write.

A write names the ETag that was read (`If-Match`), or that nothing may be there (`If-None-Match`). S3 answers reads
with what was written last.
Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from haltline.aws import Client
from haltline.chats import (
    UNREADABLE,
    ChatDamaged,
    ChatDocument,
    ChatStoreError,
    ThreadedStore,
    VersionConflict,
    document_of,
)

PREFIX, SUFFIX = "chats/", ".json"
SCAN_AT_ONCE = 16  # chats that a scan reads together
_THREADS = 40  # that anyio gives to the other verbs

_REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_MISSING = ("NoSuchKey", "404")
_CREDENTIALS = "AWS does not accept the credentials; check AWS_PROFILE, AWS_ACCESS_KEY_ID or the role"
_REGION = "the bucket is in another region; set AWS_REGION to it"
_DENIED = (
    "AWS denies the access; the role needs s3:ListBucket on the bucket (SESSION_BUCKET) and s3:GetObject, "
    "s3:PutObject and s3:DeleteObject below chats/"
)
_BUSY = "S3 takes no more requests for now; try again"
_SAY = {  # by botocore's error code, or by the error's name
    "NoSuchBucket": "there is no such bucket; set SESSION_BUCKET to one that exists",
    "InvalidBucketName": "no bucket can have that name; set SESSION_BUCKET",
    "ParamValidationError": "no bucket can have that name; set SESSION_BUCKET",
    "AccessDenied": _DENIED,
    "403": _DENIED,
    **dict.fromkeys(("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"), _CREDENTIALS),
    **dict.fromkeys(("CredentialRetrievalError", "PartialCredentialsError"), _CREDENTIALS),
    "NoCredentialsError": "no AWS credentials were found; set AWS_PROFILE, or give the process a role",
    "ProfileNotFound": "the AWS profile was not found; check AWS_PROFILE",
    "RequestTimeTooSkewed": "AWS does not accept this machine's clock; set it",
    **dict.fromkeys(("PermanentRedirect", "AuthorizationHeaderMalformed", "301"), _REGION),
    **dict.fromkeys(("SlowDown", "ServiceUnavailable", "InternalError", "500", "503"), _BUSY),
    **dict.fromkeys(
        (
            *("ConnectTimeoutError", "EndpointConnectionError", "ReadTimeoutError", "ConnectionClosedError"),
            *("IncompleteReadError", "ResponseStreamingError", "HTTPClientError", "SSLError", "ProxyConnectionError"),
        ),
        "S3 does not answer; check the network (in a VPC: its endpoint for S3) and AWS_REGION",
    ),
    **dict.fromkeys(("ValueError", "InvalidRegionError"), "there is no such S3; check AWS_REGION, AWS_ENDPOINT_URL_S3"),
}


class S3ChatStore(ThreadedStore):
    """Chats below `chats/` of a bucket, each under its scoped id.

    Nothing is imported or connected before the first verb, or `warm`.
    Each write carries a mark of its own. Where S3 refuses it and the mark is there, it was this write that S3 had
    taken before, whose answer was lost: a client of S3 sends again by itself.
    """

    def __init__(self, bucket: str, region: str, *, silence: float = 3, page: int = 1000) -> None:
        """`silence`: seconds after which S3 is asked once more. A dead one is told of before a Lambda function ends.

        `page`: objects that a scan lists at once, 1,000 at most.
        """
        self._bucket, self._page = bucket, page
        self._s3 = Client("s3", region, connect=2, read=silence, attempts=2, connections=_THREADS + SCAN_AT_ONCE)

    def warm(self) -> None:
        """Load what the first verb would have to, which takes 0.2 s, without a connection or a credential."""
        self._s3.warm()

    def prepare(self) -> None:
        """Ask S3 whether chats can be written; nothing is. Raises: ChatStoreError where they cannot."""
        with _explained():
            s3 = self._s3.get()
            try:
                # Under a name that no chat can have, and on a condition that nothing can meet.
                s3.put_object(Bucket=self._bucket, Key=f"{PREFIX}.start", IfMatch='"0"')
            except s3.exceptions.ClientError as error:
                if _code(error) not in (*_REFUSED, *_MISSING):
                    raise
            else:
                raise ChatStoreError("this S3 ignores the condition of a write (If-Match), which guards the chats")

    def _where(self, chat_id: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{PREFIX}{chat_id}{SUFFIX}"}

    def _read(self, chat_id: str) -> tuple[bytes, str] | None:
        """The object and its ETag, None where there is none."""
        with _explained():
            s3 = self._s3.get()
            try:
                found = s3.get_object(**self._where(chat_id))
                return found["Body"].read(), found["ETag"]
            except s3.exceptions.NoSuchKey:
                return None

    def _load(self, chat_id: str) -> ChatDocument:
        found = self._read(chat_id)
        return _document(*found) if found else ChatDocument(chat_id=chat_id)

    def _save(self, document: ChatDocument) -> None:
        version, mark = document.next_version(), secrets.token_hex(8)
        body = to_json(document.model_copy(update={"version": version}))
        condition = {"IfMatch": document._etag} if document._etag else {"IfNoneMatch": "*"}
        with _explained():
            s3 = self._s3.get()
            try:
                etag = s3.put_object(
                    **self._where(document.chat_id),
                    Body=body,
                    ContentType="application/json",
                    Metadata={"mark": mark},
                    **condition,
                )["ETag"]
            except s3.exceptions.ClientError as error:
                if _code(error) not in (*_REFUSED, *_MISSING):
                    raise
                etag = self._etag_of(document.chat_id, mark)
        if etag is None:
            raise VersionConflict(document.chat_id)
        document.version, document._etag = version, etag

    def _etag_of(self, chat_id: str, mark: str) -> str | None:
        """The ETag of what is stored if the write with that mark has stored it."""
        s3 = self._s3.get()
        try:
            found = s3.head_object(**self._where(chat_id))
        except s3.exceptions.ClientError as error:
            if _code(error) in _MISSING:
                return None
            raise
        return str(found["ETag"]) if found["Metadata"].get("mark") == mark else None

    def _delete(self, document: ChatDocument) -> None:
        found, version = self._read(document.chat_id), 0
        if found:
            try:
                version = _document(*found).version
            except ChatDamaged:
                version = UNREADABLE
        if version != document.version:
            raise VersionConflict(document.chat_id)
        if found is None:
            return
        with _explained():
            s3 = self._s3.get()
            try:
                s3.delete_object(**self._where(document.chat_id), IfMatch=found[1])
            except s3.exceptions.ClientError as error:
                if _code(error) in _MISSING and error.response["ResponseMetadata"].get("RetryAttempts"):
                    return  # deleted by the attempt before, whose answer was lost
                if _code(error) not in (*_REFUSED, *_MISSING):
                    raise
                raise VersionConflict(document.chat_id) from None

    def _scan(self, namespace: str | None) -> list[tuple[str, int, float]]:
        """SCAN_AT_ONCE objects at a time; times are whole seconds."""
        below = {"Prefix": f"{PREFIX}{namespace}/"} if namespace else {"Prefix": PREFIX}
        if namespace == "":
            below["Delimiter"] = "/"  # not those of others
        found: list[tuple[str, int, float]] = []
        with _explained(), ThreadPoolExecutor(SCAN_AT_ONCE, "scan") as readers:
            lister = self._s3.get().get_paginator("list_objects_v2")
            for page in lister.paginate(Bucket=self._bucket, **below, PaginationConfig={"PageSize": self._page}):
                found += filter(None, readers.map(self._told, page.get("Contents", [])))
        return found

    def _told(self, listed: dict[str, Any]) -> tuple[str, int, float] | None:
        """What a scan tells of an object; None where it is gone meanwhile, or not one of ours."""
        chat_id = listed["Key"].removeprefix(PREFIX).removesuffix(SUFFIX)
        content = self._read(chat_id) if listed["Key"] == f"{PREFIX}{chat_id}{SUFFIX}" else None
        try:
            return (chat_id, len(_document(*content).messages), listed["LastModified"].timestamp()) if content else None
        except ChatDamaged:
            return None


def _document(body: bytes, etag: str) -> ChatDocument:
    try:
        document = document_of(body)
    except (ValueError, ValidationError) as error:
        raise ChatDamaged("the chat's document is damaged") from error
    document._etag = etag
    return document


@contextmanager
def _explained() -> Iterator[None]:
    """Whatever S3 or botocore says becomes a ChatStoreError for a person."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, ValueError, OSError) as error:
        what = _code(error)
        raise ChatStoreError(_SAY.get(what, f"S3 cannot be used ({what})")) from error


def _code(error: Exception) -> str:
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", "")) or type(error).__name__
