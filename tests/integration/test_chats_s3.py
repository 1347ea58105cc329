"""What is S3's own about S3ChatStore: lost replies, errors in words, objects of others. The rest is in test_chats."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from botocore.exceptions import ClientError

from haltline.bootstrap import check_bucket, make_resources
from haltline.chats import UNREADABLE, ChatDocument, ChatStoreError, VersionConflict
from haltline.chats_s3 import S3ChatStore
from haltline.settings import Settings, SettingsError
from tests.integration.test_chats import RUN, chat, contents, texts
from tests.moto import REGION, Aws, Canned
from tests.stack import Stack, running_stack


@pytest.fixture
def store(bucket: str) -> S3ChatStore:
    return S3ChatStore(bucket, REGION)


def key(chat_id: str) -> str:
    return f"chats/{chat_id}.json"


# ---- moto itself: without these the tests below and the shared suite would show nothing


def test_moto_refuses_a_write_on_a_false_condition(aws: Aws, bucket: str) -> None:
    s3 = aws.client("s3")
    there = {"Bucket": bucket, "Key": key("trip")}
    etag = s3.put_object(**there, Body=b"1", IfNoneMatch="*")["ETag"]
    refused: list[Callable[[], Any]] = [
        lambda: s3.put_object(**there, Body=b"2", IfNoneMatch="*"),
        lambda: s3.put_object(**there, Body=b"2", IfMatch='"other"'),
        lambda: s3.delete_object(**there, IfMatch='"other"'),
    ]
    for call in refused:
        with pytest.raises(ClientError) as error:
            call()
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert s3.get_object(**there)["Body"].read() == b"1"
    s3.put_object(**there, Body=b"2", IfMatch=etag)
    s3.delete_object(**there, IfMatch=s3.head_object(**there)["ETag"])
    with pytest.raises(ClientError) as error:
        s3.put_object(**there, Body=b"3", IfMatch=etag)
    assert error.value.response["Error"]["Code"] == "NoSuchKey"


# ---- where a chat lies


async def test_a_chat_is_one_json_object_named_by_its_id(store: S3ChatStore, aws: Aws, bucket: str) -> None:
    document = chat("Trip_1.x-y", "Hello")
    await store.save(document)
    s3 = aws.client("s3")
    assert [o["Key"] for o in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["chats/Trip_1.x-y.json"]
    found = s3.get_object(Bucket=bucket, Key=key("Trip_1.x-y"))
    assert found["ContentType"] == "application/json"
    assert json.loads(found["Body"].read()) == document.model_dump()


async def test_a_save_is_one_request(store: S3ChatStore, aws: Aws) -> None:
    document = chat("trip", "Hello")
    await store.save(document)
    document = await store.load("trip")
    aws.seen.clear()
    await store.save(document)
    assert [line.split()[0] for line in aws.seen] == ["PUT"]


async def test_what_no_chat_was_read_from_writes_over_none(store: S3ChatStore) -> None:
    await store.save(chat("trip", "Hello"))
    by_hand = ChatDocument(chat_id="trip", version=(await store.load("trip")).version)
    with pytest.raises(VersionConflict):
        await store.save(by_hand)


# ---- replies that are lost


Lose = Callable[..., None]


@pytest.fixture
def lose(aws: Aws) -> Lose:
    """Lose the reply to the next request of a method, and call something before it is sent again."""

    def lose(method: str, then: Callable[[], Any] = lambda: None) -> None:
        def lost(environ: dict[str, Any]) -> bool:
            if environ["REQUEST_METHOD"] != method:
                return False
            aws.lose_reply = None
            then()
            return True

        aws.lose_reply = lost

    return lose


@pytest.mark.parametrize("new", [True, False], ids=["a new chat", "a chat that is there"])
async def test_a_save_whose_reply_was_lost_is_no_conflict(new: bool, store: S3ChatStore, aws: Aws, lose: Lose) -> None:
    document = chat("trip", "Hello")
    if not new:
        await store.save(document)
    aws.seen.clear()
    lose("PUT")
    await store.save(document)
    assert [line.split()[0] for line in aws.seen] == ["PUT", "PUT", "HEAD"]
    assert await store.load("trip") == document
    document.append("user", "on", RUN)
    await store.save(document)
    assert texts(await store.load("trip")) == ["Hello", "on"]


async def test_a_lost_reply_hides_no_other_writer(store: S3ChatStore, bucket: str, lose: Lose) -> None:
    mine = chat("trip", "Hello")
    await store.save(mine)
    mine.append("user", "mine", RUN)
    theirs: list[ChatDocument] = []

    def another_writes() -> None:
        other = S3ChatStore(bucket, REGION)
        theirs.append(asyncio.run(other.load("trip")))
        theirs[0].append("user", "theirs", RUN)
        asyncio.run(other.save(theirs[0]))

    lose("PUT", then=another_writes)
    with pytest.raises(VersionConflict):
        await store.save(mine)
    assert await store.load("trip") == theirs[0]
    assert texts(theirs[0]) == ["Hello", "mine", "theirs"]


async def test_a_writer_that_loses_is_told_though_the_version_is_the_one_it_would_have_written(
    store: S3ChatStore,
) -> None:
    await store.save(chat("trip", "Hello"))
    one, other = await store.load("trip"), await store.load("trip")
    await store.save(one)
    with pytest.raises(VersionConflict):
        await store.save(other)  # to the byte what is stored, and written by another


async def test_a_deletion_whose_reply_was_lost_is_one(store: S3ChatStore, lose: Lose) -> None:
    document = chat("trip", "Hello")
    await store.save(document)
    lose("DELETE")
    await store.delete(document)
    assert (await store.load("trip")).version == 0


async def test_a_deletion_does_not_meet_what_is_written_as_it_begins(store: S3ChatStore, bucket: str, aws: Aws) -> None:
    document = chat("trip", "Hello")
    await store.save(document)

    def another_writes(environ: dict[str, Any]) -> bool:
        if environ["REQUEST_METHOD"] == "GET":  # the deletion has looked
            aws.lose_reply = None
            asyncio.run(S3ChatStore(bucket, REGION).save(document.model_copy(deep=True)))
        return False

    aws.lose_reply = another_writes
    with pytest.raises(VersionConflict):
        await store.delete(document)
    assert texts(await store.load("trip")) == ["Hello"]


# ---- objects that are no chats


@pytest.mark.parametrize("content", [p for p in contents() if p.values[0] is not None])
async def test_an_object_that_cannot_be_read(content: bytes, store: S3ChatStore, aws: Aws, bucket: str) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket=bucket, Key=key("trip"), Body=content)
    with pytest.raises(ChatStoreError) as error:
        await store.load("trip")
    assert "secret" not in str(error.value)
    with pytest.raises(VersionConflict):
        await store.save(chat("trip"))
    assert s3.get_object(Bucket=bucket, Key=key("trip"))["Body"].read() == content
    assert await store.scan("") == []
    await store.delete(ChatDocument(chat_id="trip", version=UNREADABLE))
    await store.save(chat("trip", "anew"))
    assert texts(await store.load("trip")) == ["anew"]


async def test_a_scan_tells_chats_only_and_reads_page_after_page(aws: Aws, bucket: str) -> None:
    store, before = S3ChatStore(bucket, REGION, page=3), time.time()
    await store.save(chat("one", "a"))
    await store.save(chat("two", "a", "b"))
    body = chat("half").model_dump_json().encode()
    others = {"chats/half": body, "chats/.json": b"{", "chats/z.txt": body, "other/half.json": body, "half.json": body}
    with httpx.Client(base_url=f"{aws.url}/{bucket}/") as http:
        for name, content in others.items():
            assert http.put(name, content=content).status_code == 200
    aws.seen.clear()
    found = sorted(await store.scan(""))
    assert [(i, n) for i, n, _ in found] == [("one", 1), ("two", 2)]
    assert aws.seen.count(f"GET /{bucket}") == 2
    assert all(before - 1 <= at <= time.time() + 1 for *_, at in found)


# ---- an S3 that cannot be used


async def each_verb(store: S3ChatStore) -> list[str]:
    """What each verb says that fails."""
    said = []
    for verb in (store.load("trip"), store.save(chat("trip")), store.delete(chat("trip")), store.scan("")):
        with pytest.raises(ChatStoreError) as error:
            await verb
        said.append(str(error.value))
    with pytest.raises(ChatStoreError) as error:
        await asyncio.to_thread(store.prepare)
    return [*said, str(error.value)]


async def test_a_bucket_that_is_not_there(aws: Aws) -> None:
    assert set(await each_verb(S3ChatStore("nobody-has-it", REGION))) == {
        "there is no such bucket; set SESSION_BUCKET to one that exists"
    }


async def test_a_name_that_no_bucket_has(aws: Aws) -> None:
    assert set(await each_verb(S3ChatStore("no bucket", REGION))) == {
        "no bucket can have that name; set SESSION_BUCKET"
    }


@pytest.fixture
def no_credentials(aws: Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.usefixtures("no_credentials")
async def test_a_store_is_warmed_without_credentials(
    bucket: str, canned: Callable[[bytes], Canned], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot must hold none: they are another environment's by the time it is used."""
    found = b'{"AccessKeyId": "a", "SecretAccessKey": "b", "Token": "c", "Expiration": "2999-01-01T00:00:00Z"}'
    server = canned(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(found), found))
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.url}/credentials")
    store = S3ChatStore(bucket, REGION)
    store.warm()
    assert server.asked == 0
    with pytest.raises(ChatStoreError):
        await store.scan("")
    assert server.asked > 1


@pytest.mark.usefixtures("no_credentials")
async def test_no_credentials(bucket: str) -> None:
    assert set(await each_verb(S3ChatStore(bucket, REGION))) == {
        "no AWS credentials were found; set AWS_PROFILE, or give the process a role"
    }


async def test_a_profile_that_is_not_there(aws: Aws, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ChatStoreError, match="check AWS_PROFILE"):
        await S3ChatStore(bucket, REGION).scan("")
    monkeypatch.setenv("AWS_PROFILE", "")  # not set, as everywhere
    await S3ChatStore(bucket, REGION).scan("")


def refusal(status: str, code: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>arn:aws:secret</Message></Error>"
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        ("403 Forbidden", "AccessDenied", "s3:ListBucket on the bucket"),
        ("403 Forbidden", "InvalidAccessKeyId", "does not accept the credentials"),
        ("400 Bad Request", "ExpiredToken", "does not accept the credentials"),
        ("403 Forbidden", "RequestTimeTooSkewed", "clock"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", "set AWS_REGION"),
        ("418 Teapot", "Unheard", "S3 cannot be used (Unheard)"),
    ],
)
async def test_a_refusal_says_what_to_change(
    status: str, code: str, says: str, canned: Callable[[bytes], Canned]
) -> None:
    canned(refusal(status, code))
    for said in await each_verb(S3ChatStore("any-bucket", REGION)):
        assert says in said
        assert "secret" not in said


async def test_an_s3_that_says_slow_down_is_asked_twice(canned: Callable[[bytes], Canned]) -> None:
    server = canned(refusal("503 Slow Down", "SlowDown"))
    with pytest.raises(ChatStoreError, match="takes no more requests for now; try again"):
        await S3ChatStore("any-bucket", REGION).load("trip")
    assert server.asked == 2


async def test_an_s3_where_nobody_listens(aws: Aws, canned: Callable[[bytes], Canned]) -> None:
    canned(b"").close()
    with pytest.raises(ChatStoreError, match="S3 does not answer; check the network"):
        await S3ChatStore("any-bucket", REGION).load("trip")


async def test_an_s3_that_accepts_and_is_silent(canned: Callable[[None], Canned]) -> None:
    canned(None)
    store, begun = S3ChatStore("any-bucket", REGION, silence=0.1), time.monotonic()
    verbs = (store.load("trip"), store.save(chat("trip")), store.delete(chat("trip")), store.scan(""))
    for error in await asyncio.gather(*verbs, return_exceptions=True):
        assert isinstance(error, ChatStoreError)
        assert "S3 does not answer" in str(error)
    assert time.monotonic() - begun < 10


async def test_an_answer_that_breaks_off(canned: Callable[[bytes], Canned]) -> None:
    canned(b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 1000\r\n\r\n{")
    with pytest.raises(ChatStoreError, match="S3 does not answer"):
        await S3ChatStore("any-bucket", REGION).load("trip")


async def test_an_s3_that_knows_no_conditions_is_refused(canned: Callable[[bytes], Canned]) -> None:
    canned(b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    with pytest.raises(ChatStoreError, match="ignores the condition"):
        await asyncio.to_thread(S3ChatStore("any-bucket", REGION).prepare)


async def test_an_address_that_is_none(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nowhere")
    with pytest.raises(ChatStoreError, match="check AWS_REGION, AWS_ENDPOINT_URL_S3"):
        await S3ChatStore("any-bucket", REGION).load("trip")


# ---- a process of it


def test_settings_choose_the_bucket_without_asking_s3(canned: Callable[[bytes | None], Canned]) -> None:
    canned(None)
    settings = Settings(
        _env_file=None, session_store="s3", session_bucket="b", model_provider="scripted", redis_url="redis://nowhere"
    )
    assert isinstance(make_resources(settings).store, S3ChatStore)


def test_a_start_that_may_connect_is_refused_by_name(aws: Aws) -> None:
    settings = Settings(
        _env_file=None, session_store="s3", session_bucket="nope", redis_url="redis://nowhere", aws_region=REGION
    )
    with pytest.raises(SettingsError, match=r"^SESSION_BUCKET=nope: there is no such bucket"):
        check_bucket(make_resources(settings, serves_chat=False))


@pytest.fixture
def stack(aws: Aws, bucket: str, tmp_path: Path) -> Iterator[Stack]:
    with running_stack(
        tmp_path, replicas=2, SESSION_STORE="s3", SESSION_BUCKET=bucket, LOG_LEVEL="DEBUG", **aws.environment
    ) as running:
        yield running


def test_replicas_share_chats_in_a_bucket(stack: Stack, aws: Aws, bucket: str) -> None:
    one, other = (f"{replica.url}/api/v1" for replica in stack.replicas)
    said = httpx.post(f"{one}/chat/trip", json={"message": '/script {"text": "Hello"}'}, timeout=20)
    assert said.text.endswith("event: done\ndata: [DONE]\n\n"), said.text
    slow = '/script {"chunks": ["tick "], "repeat": 1000}'
    with httpx.stream("POST", f"{other}/chat/trip", json={"message": slow}, timeout=20) as stream:
        frames = stream.iter_text()
        heard = next(frames)
        assert httpx.post(f"{one}/stop/trip?wait=10", timeout=20).json()["status"] == "stopped"
        heard += "".join(frames)
    assert heard.endswith("event: stopped\ndata: [STOPPED]\n\n")
    messages = httpx.get(f"{one}/chat/trip/messages", timeout=20).json()["messages"]
    assert [(m["role"], m.get("stopped", False)) for m in messages] == [
        ("user", False),
        ("assistant", False),
        ("user", False),
        ("assistant", True),
    ]
    assert messages[1]["text"] == "Hello"
    assert messages[3]["text"].startswith("tick ")
    listed = httpx.get(f"{other}/chats", timeout=20).json()["chats"]  # an index nobody made yet: the bucket is read
    assert [(c["chat_id"], c["message_count"]) for c in listed] == [("trip", 4)]
    assert httpx.delete(f"{one}/chat/trip", timeout=20).json()["status"] == "deleted"
    assert aws.client("s3").list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert not stack.session_dir.exists()


def test_a_replica_whose_bucket_is_not_there_does_not_start(aws: Aws, tmp_path: Path) -> None:
    stack = Stack("redis://127.0.0.1:1/0", tmp_path / "sessions", tmp_path, None)  # type: ignore[arg-type]
    replica = stack.add_replica(SESSION_STORE="s3", SESSION_BUCKET="nobody-has-it", **aws.environment)
    assert replica.process.wait(30) == 2
    line = "haltline: SESSION_BUCKET=nobody-has-it: there is no such bucket; set SESSION_BUCKET to one that exists"
    assert replica.log.read_text().splitlines()[-1] == line
