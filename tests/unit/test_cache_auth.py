"""The token that signs in to ElastiCache: its form, its signature, how long it is used."""

from __future__ import annotations

import datetime
import hashlib
import hmac
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from redis.exceptions import AuthenticationError

from haltline import cache_auth
from haltline.cache_auth import CacheCredentials

KEY, SECRET, SESSION = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "a/session+token=="


class Clock:
    now = 1_800_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(cache_auth, "time", made)
    return made


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Credentials of a role, and nothing else of this machine's."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", SESSION),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", str(tmp_path / "none")),
        ("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none")),
    ):
        monkeypatch.setenv(name, value)
    cache_auth._session.cache_clear()  # it keeps what it has read


def provider() -> CacheCredentials:
    return CacheCredentials("haltline-user", "Haltline-Cache", "eu-central-1")


def test_the_token_is_a_request_to_connect() -> None:
    user, token = provider().get_credentials()
    assert user == "haltline-user"
    assert token.startswith("haltline-cache/?Action=connect&User=haltline-user&ResourceType=ServerlessCache&X-Amz-")
    told = dict(parse_qsl(urlsplit(f"https://{token}").query))
    assert set(told) == {"Action", "User", "ResourceType"} | {
        f"X-Amz-{name}"
        for name in ("Algorithm", "Credential", "Date", "Expires", "Security-Token", "SignedHeaders", "Signature")
    }
    assert (told["X-Amz-Algorithm"], told["X-Amz-Expires"], told["X-Amz-SignedHeaders"]) == (
        "AWS4-HMAC-SHA256",
        "900",
        "host",
    )
    assert told["X-Amz-Security-Token"] == SESSION
    date = told["X-Amz-Date"]
    assert told["X-Amz-Credential"] == f"{KEY}/{date[:8]}/eu-central-1/elasticache/aws4_request"
    signed_at = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    assert abs((datetime.datetime.now(datetime.UTC) - signed_at).total_seconds()) < 60


def test_the_signature_is_what_aws_reckons() -> None:
    """By the steps of "Signature Version 4 for API requests", written out here."""
    _, token = provider().get_credentials()
    host, _, query = token.partition("/?")
    told = dict(parse_qsl(query))
    signature, date = told.pop("X-Amz-Signature"), told["X-Amz-Date"]
    canonical_query = "&".join(f"{quote(n, safe='-_.~')}={quote(v, safe='-_.~')}" for n, v in sorted(told.items()))
    request = "\n".join(["GET", "/", canonical_query, f"host:{host}", "", "host", hashlib.sha256(b"").hexdigest()])
    scope = f"{date[:8]}/eu-central-1/elasticache/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    assert signature == hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


async def test_a_token_is_used_for_a_while_and_replaced_in_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    made = provider()
    _, first = made.get_credentials()
    clock.now += cache_auth.SIGN_AGAIN - 1
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another time")  # not looked at while a token is good
    assert (await made.get_credentials_async())[1] == made.get_credentials()[1] == first
    clock.now += 1
    cache_auth._session.cache_clear()
    _, second = await made.get_credentials_async()
    assert second != first
    assert made.get_credentials() == ("haltline-user", second)
    assert cache_auth.SIGN_AGAIN <= cache_auth.EXPIRES - 60


async def test_a_clock_that_is_set_back_keeps_no_token(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    made = provider()
    signed: list[str] = []
    monkeypatch.setattr(made, "_sign", lambda: signed.append("") or str(len(signed)))
    assert made.get_credentials()[1] == "1"
    clock.now -= 3600
    assert (await made.get_credentials_async())[1] == "2"


def test_without_credentials_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(AuthenticationError, match="no AWS credentials were found"):
        provider().get_credentials()
