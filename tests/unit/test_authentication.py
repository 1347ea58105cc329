"""Who asks: every kind of credential that is taken, every kind that is not, and where the keys come from."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from starlette.types import Scope

from haltline import authentication
from haltline.authentication import TOLD, AuthenticationUnavailable, Authenticator, Unauthorized, make_authenticator
from haltline.principals import ANYONE, Principal
from haltline.settings import SettingsError, read_settings
from tests.credentials import (
    AUDIENCE,
    ISSUER,
    Issuer,
    SigningKey,
    api_key,
    claims,
    ec_key,
    jwks,
    rsa_key,
    token,
    write_jwks,
)

RSA, EC = rsa_key(), ec_key()
NO_KEY = "No valid credential. Send Authorization: Bearer KEY."
NO_TOKEN = "No valid credential. Send Authorization: Bearer TOKEN."


def asking(*authorization: str | bytes, **more: Any) -> Scope:
    """A request with these `Authorization` headers."""
    raw = [value if isinstance(value, bytes) else value.encode() for value in authorization]
    return {"type": "http", "headers": [(b"host", b"h"), *((b"authorization", value) for value in raw)], **more}


async def refusal(authenticator: Authenticator, scope: Scope) -> str:
    with pytest.raises(Unauthorized) as refused:
        await authenticator.principal_of(scope)
    return str(refused.value)


# ---- nobody is asked, or somebody else has asked


async def test_without_authentication_everyone_is_the_same() -> None:
    nobody_asks = make_authenticator(read_settings())
    assert await nobody_asks.principal_of(asking()) is ANYONE
    assert await nobody_asks.principal_of(asking("Bearer x", "Basic y")) is ANYONE


async def test_the_door_names_the_principal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "chat")
    told = make_authenticator(read_settings(auth="apigateway", replica_name="r"))
    alice = Principal("alice", admin=True)
    assert await told.principal_of(asking(**{TOLD: alice})) is alice


@pytest.mark.parametrize("more", [{}, {TOLD: None}, {TOLD: "alice"}])
async def test_what_the_door_has_not_named_is_nobody(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "chat")
    told = make_authenticator(read_settings(auth="apigateway", replica_name="r"))
    scope = {**asking("Bearer alice"), **more}
    scope["headers"] += [(TOLD.encode(), b"alice"), (b"x-haltline-told-principal", b"alice")]
    assert await refusal(told, scope) == "No valid credential. Sign in."


def test_no_door_stands_open_by_mistake() -> None:
    """Settings that were not checked, as nobody should make them."""
    unchecked = read_settings().model_copy(update={"auth": "api-keys"})
    with pytest.raises(SettingsError, match="AUTH=api-keys"):
        make_authenticator(unchecked)


# ---- API keys

ALICE, ALICE_NEW, BOB, ROOT = api_key("alice"), api_key("alice"), api_key("bob"), api_key("ops@example.org", admin=True)


@pytest.fixture
def keys() -> Authenticator:
    entries = f" {ALICE.entry} ,{ALICE_NEW.entry.upper().replace('ALICE', 'alice')},\n{BOB.entry}, {ROOT.entry},"
    return make_authenticator(read_settings(auth="api-keys", api_keys=entries))


@pytest.mark.parametrize(
    ("header", "principal"),
    [
        pytest.param(f"Bearer {ALICE.key}", Principal("alice"), id="a key"),
        pytest.param(f"Bearer {ALICE_NEW.key}", Principal("alice"), id="the next key of the same"),
        pytest.param(f"Bearer {BOB.key}", Principal("bob"), id="another's key"),
        pytest.param(f"Bearer {ROOT.key}", Principal("ops@example.org", admin=True), id="an admin's"),
        pytest.param(f"bEARER {ALICE.key}", Principal("alice"), id="the scheme in any case"),
        pytest.param(f"Bearer   {ALICE.key}", Principal("alice"), id="some spaces before it"),
        pytest.param(f"Bearer {ALICE.key} \t", Principal("alice"), id="blanks behind it, which are none of the header"),
    ],
)
async def test_a_key_names_its_principal(keys: Authenticator, header: str, principal: Principal) -> None:
    assert await keys.principal_of(asking(header)) == principal


NO_CREDENTIAL: list[Any] = [
    pytest.param([], id="none"),
    pytest.param([""], id="an empty header"),
    pytest.param(["Bearer"], id="the scheme alone"),
    pytest.param(["Bearer "], id="an empty key"),
    pytest.param([b"\xff\xfe"], id="no text"),
    pytest.param([b"Bearer \xff\x00"], id="no text after the scheme"),
]
BAD_KEYS = [
    pytest.param([f"Basic {ALICE.key}"], id="Basic"),
    pytest.param([f"Basic {base64.b64encode(f'alice:{ALICE.key}'.encode()).decode()}"], id="Basic, encoded"),
    pytest.param([ALICE.key], id="without a scheme"),
    pytest.param([f"Bearer{ALICE.key}"], id="no space between"),
    pytest.param([f"Bearer\t{ALICE.key}"], id="a tab between"),
    pytest.param([f"Bearer {ALICE.key}"] * 2, id="two headers, both good"),
    pytest.param([f"Bearer {ALICE.key}", "Bearer x"], id="two headers, the first good"),
    pytest.param(["Bearer x", f"Bearer {ALICE.key}"], id="two headers, the last good"),
    pytest.param([f"Bearer {ALICE.key}, Bearer {BOB.key}"], id="two in one"),
    pytest.param([f"Bearer {api_key('alice').key}"], id="a key that nobody has"),
    pytest.param([f"Bearer {ALICE.key[:-1]}"], id="all but its end"),
    pytest.param([f"Bearer {ALICE.key}0"], id="and some more"),
    pytest.param([f"Bearer {ALICE.key.upper()}"], id="in capitals"),
    pytest.param([f"Bearer {ALICE.hex}"], id="the hash of a key"),
    pytest.param([f"Bearer {ALICE.entry}"], id="the entry in the settings"),
    pytest.param([f"Bearer alice={ALICE.key}"], id="with the principal"),
]


@pytest.mark.parametrize("sent", [*NO_CREDENTIAL, *BAD_KEYS])
async def test_what_is_no_key_is_refused_in_the_same_words(
    keys: Authenticator, sent: list[str | bytes], log: list[str]
) -> None:
    assert await refusal(keys, asking(*sent)) == NO_KEY
    assert len(log) == 1
    assert log[0].startswith("INFO reason=<")
    assert not any(secret in log[0] for secret in (ALICE.key, ALICE.hex, "alice"))


async def test_the_time_does_not_tell_which_key_it_was(keys: Authenticator, monkeypatch: pytest.MonkeyPatch) -> None:
    """By construction: every entry is compared, over its whole length, whichever it is."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(authentication.hmac, "compare_digest", counted)
    all_of_them = [bytes.fromhex(key.hex) for key in (ALICE, ALICE_NEW, BOB, ROOT)]
    for key in (ALICE.key, BOB.key, ROOT.key):
        compared.clear()
        await keys.principal_of(asking(f"Bearer {key}"))
        assert compared == [(entry, hashlib.sha256(key.encode()).digest()) for entry in all_of_them]
    compared.clear()
    await refusal(keys, asking("Bearer x"))
    assert [entry for entry, _ in compared] == all_of_them


# ---- tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Authenticator:
    return with_keys(tmp_path, RSA, EC)


def with_keys(directory: Path, *keys: SigningKey | dict[str, Any]) -> Authenticator:
    """An authenticator with these in a file, by the settings."""
    path = write_jwks(directory / "jwks.json", *keys)
    return make_authenticator(read_settings(auth="jwt", jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks=str(path)))


def soon(seconds: float) -> int:
    return int(time.time() + seconds)


@pytest.mark.parametrize(
    ("made", "principal"),
    [
        pytest.param(lambda: token(RSA), Principal("alice"), id="RS256"),
        pytest.param(lambda: token(EC), Principal("alice"), id="ES256"),
        pytest.param(
            lambda: token(RSA, sub="auth0|5f7c8ec7c33c6c004bbafe82"), Principal("auth0|5f7c8ec7c33c6c004bbafe82")
        ),
        pytest.param(lambda: token(RSA, sub="Zoë Ł 李 🙂"), Principal("Zoë Ł 李 🙂"), id="a name in any script"),
        pytest.param(lambda: token(RSA, sub="x" * 256), Principal("x" * 256), id="the longest name"),
        pytest.param(lambda: token(RSA, aud=["other", AUDIENCE]), Principal("alice"), id="several audiences"),
        pytest.param(lambda: token(RSA, nbf=soon(3), iat=soon(3)), Principal("alice"), id="a clock before ours"),
        pytest.param(lambda: token(RSA, exp=soon(-2)), Principal("alice"), id="a clock behind ours"),
        pytest.param(lambda: token(RSA, exp=soon(60) + 0.5), Principal("alice"), id="a broken second"),
        pytest.param(lambda: token(RSA, iat=None), Principal("alice"), id="no time of issue"),
        pytest.param(lambda: token(RSA, headers={"typ": "at+jwt"}), Principal("alice"), id="typed as RFC 9068 says"),
        pytest.param(
            lambda: by_hand(jwk=rsa_key("attacker").jwk()), Principal("alice"), id="a jwk that is not believed"
        ),
        pytest.param(lambda: token(RSA, scope="read admin"), Principal("alice", admin=True), id="an admin"),
        pytest.param(lambda: token(RSA, scope=["admin"]), Principal("alice", admin=True), id="an admin by a list"),
        pytest.param(lambda: token(RSA, scope="administrator"), Principal("alice"), id="no admin"),
        pytest.param(lambda: token(RSA, scope="read:admin"), Principal("alice"), id="an admin of something else"),
        pytest.param(lambda: token(RSA, scope={"admin": True}), Principal("alice"), id="an odd scope"),
        pytest.param(lambda: token(RSA, scope=["read", ["admin"]]), Principal("alice"), id="a nested scope"),
        pytest.param(lambda: token(RSA, scp="admin", roles=["admin"]), Principal("alice"), id="other claims"),
        pytest.param(lambda: token(RSA, headers={"kid": None}), Principal("alice"), id="no kid, one key that fits"),
    ],
)
async def test_a_token_names_its_principal(
    tokens: Authenticator, made: Callable[[], str], principal: Principal
) -> None:
    assert await tokens.principal_of(asking(f"Bearer {made()}")) == principal


def part(value: Mapping[str, Any] | bytes) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unsigned(algorithm: Any, signature: str = "", **header: Any) -> str:
    return f"{part({'alg': algorithm, 'typ': 'JWT', 'kid': RSA.kid, **header})}.{part(claims())}.{signature}"


def hmac_with(secret: bytes, algorithm: str = "HS256", kid: str = RSA.kid) -> str:
    """Signed with what everyone knows: PyJWT itself would not do it."""
    signed = f"{part({'alg': algorithm, 'typ': 'JWT', 'kid': kid})}.{part(claims(scope='admin'))}"
    return f"{signed}.{part(hmac.digest(secret, signed.encode(), 'sha256'))}"


def by_hand(**header: Any) -> str:
    """Good but for what the header says more, which PyJWT would not write."""
    signed = f"{part({'alg': 'RS256', 'kid': RSA.kid, **header})}.{part(claims())}"
    return f"{signed}.{part(RSA.private.sign(signed.encode(), PKCS1v15(), hashes.SHA256()))}"


def tampered(segment: int, change: Callable[[str], str]) -> str:
    parts = token(RSA).split(".")
    parts[segment] = change(parts[segment])
    return ".".join(parts)


def another_letter(text: str) -> str:
    return ("B" if text[0] == "A" else "A") + text[1:]


def forged(**header: Any) -> str:
    """By an attacker's own key, under the name of a good one."""
    return token(rsa_key("attacker"), headers={"kid": RSA.kid, **header})


def signed_by(key: SigningKey, payload: Any) -> str:
    """Any JSON, signed."""
    return jwt.api_jws.encode(json.dumps(payload).encode(), key.private, key.algorithm, {"kid": key.kid})


BAD_TOKENS: dict[str, tuple[Callable[[], str], str]] = {
    "expired": (lambda: token(RSA, exp=soon(-60)), "expired"),
    "expired just now": (lambda: token(RSA, exp=soon(-7)), "expired"),
    "no exp": (lambda: token(RSA, exp=None), "a claim is missing"),
    "exp is null": (lambda: signed_by(RSA, {**claims(), "exp": None}), "a claim is missing"),
    "exp is a word": (lambda: token(RSA, exp="never"), "unreadable"),
    "exp is endless": (lambda: token(RSA, exp=float("inf")), "unreadable"),
    "exp is no number": (lambda: token(RSA, exp=float("nan")), "unreadable"),
    "exp is a list": (lambda: token(RSA, exp=[soon(60)]), "unreadable"),
    "not yet valid": (lambda: token(RSA, nbf=soon(60)), "not yet valid"),
    "issued tomorrow": (lambda: token(RSA, iat=soon(86400)), "not yet valid"),
    "another audience": (lambda: token(RSA, aud="other"), "another audience"),
    "other audiences": (lambda: token(RSA, aud=["other", f"{AUDIENCE}-2"]), "another audience"),
    "part of the audience": (lambda: token(RSA, aud=AUDIENCE[:-1]), "another audience"),
    "an odd audience": (lambda: token(RSA, aud={AUDIENCE: 1}), "another audience"),
    "no audience": (lambda: token(RSA, aud=None), "a claim is missing"),
    "another issuer": (lambda: token(RSA, iss="https://evil.example/"), "another issuer"),
    "the issuer without its slash": (lambda: token(RSA, iss=ISSUER.rstrip("/")), "another issuer"),
    "the issuer in capitals": (lambda: token(RSA, iss=ISSUER.upper()), "another issuer"),
    "a list of issuers": (lambda: signed_by(RSA, {**claims(), "iss": [ISSUER]}), "another issuer"),
    "no issuer": (lambda: token(RSA, iss=None), "a claim is missing"),
    "no sub": (lambda: token(RSA, sub=None), "a claim is missing"),
    "an empty sub": (lambda: token(RSA, sub=""), "no usable sub"),
    "a number for a sub": (lambda: token(RSA, sub=42), "no usable sub"),
    "a list for a sub": (lambda: token(RSA, sub=["alice"]), "no usable sub"),
    "a line end in the sub": (lambda: token(RSA, sub="alice\nINFO all is well"), "no usable sub"),
    "a zero in the sub": (lambda: token(RSA, sub="alice\0"), "no usable sub"),
    "a turn of direction in the sub": (lambda: token(RSA, sub="alice\u202e"), "no usable sub"),
    "half a character in the sub": (lambda: token(RSA, sub="alice\ud800"), "no usable sub"),
    "a sub that is too long": (lambda: token(RSA, sub="x" * 257), "no usable sub"),
    "a sub of too many bytes": (lambda: token(RSA, sub="李" * 86), "no usable sub"),
    **{
        f"alg {alg!r}": (partial(unsigned, alg), "another algorithm")
        for alg in ("none", "None", "NONE", "nOnE", "", None, 0, [], "HS256", "EdDSA")
    },
    "alg none with a signature": (lambda: unsigned("none", token(RSA).split(".")[2]), "another algorithm"),
    "alg in a list": (lambda: unsigned(["RS256"], token(RSA).split(".")[2]), "another algorithm"),
    "alg in small letters": (lambda: unsigned("rs256", token(RSA).split(".")[2]), "another algorithm"),
    "no alg": (lambda: f"{part({'kid': RSA.kid})}.{part(claims())}.{part(b'x')}", "another algorithm"),
    "no signature": (lambda: unsigned("RS256"), "a wrong signature"),
    "HS256 with the PEM": (lambda: hmac_with(RSA.pem), "another algorithm"),
    "HS256 with the DER": (lambda: hmac_with(RSA.der), "another algorithm"),
    "HS256 with the PEM of the other": (lambda: hmac_with(EC.pem, kid=EC.kid), "another algorithm"),
    "HS256 with an empty secret": (lambda: hmac_with(b""), "another algorithm"),
    "HMAC that says RS256": (lambda: hmac_with(RSA.pem, "RS256"), "a wrong signature"),
    "HMAC that says ES256": (lambda: hmac_with(EC.pem, "ES256", EC.kid), "a wrong signature"),
    "RS256 with the kid of the EC key": (lambda: token(RSA, headers={"kid": EC.kid}), "an unknown key"),
    "ES256 with the kid of the RSA key": (lambda: token(EC, headers={"kid": RSA.kid}), "an unknown key"),
    "RS384": (lambda: token(RSA, headers={"alg": "RS384"}), "another algorithm"),
    "RS512": (lambda: token(RSA, headers={"alg": "RS512"}), "another algorithm"),
    "PS256": (lambda: token(RSA, headers={"alg": "PS256"}), "another algorithm"),
    "ES384": (lambda: token(ec_key("p384", ec.SECP384R1)), "another algorithm"),
    "another payload": (lambda: tampered(1, lambda _: part(claims(sub="bob"))), "a wrong signature"),
    "a letter of the payload": (lambda: tampered(1, another_letter), "a wrong signature"),
    "a letter of the signature": (lambda: tampered(2, another_letter), "a wrong signature"),
    "half a signature": (lambda: tampered(2, lambda s: s[: len(s) // 8 * 4]), "a wrong signature"),
    "another header": (lambda: tampered(0, lambda _: part({"alg": "RS256", "kid": RSA.kid})), "a wrong signature"),
    "zeros for an ES256 signature": (lambda: unsigned("ES256", part(bytes(64)), kid=EC.kid), "a wrong signature"),
    "a DER signature for ES256": (
        lambda: unsigned("ES256", part(EC.private.sign(b"x", ec.ECDSA(hashes.SHA256()))), kid=EC.kid),
        "a wrong signature",
    ),
    "an attacker's key": (lambda: forged(), "a wrong signature"),
    "a jwk of its own": (lambda: forged(jwk=rsa_key("attacker").jwk()), "a wrong signature"),
    "a jwk of its own and no kid": (lambda: forged(kid=None, jwk=rsa_key("attacker").jwk()), "a wrong signature"),
    "an x5c of its own": (lambda: forged(x5c=[part(rsa_key("attacker").der)]), "a wrong signature"),
    "an unknown kid": (lambda: token(RSA, headers={"kid": "other"}), "an unknown key"),
    "a path for a kid": (lambda: token(RSA, headers={"kid": "../../../dev/null"}), "an unknown key"),
    "an empty kid": (lambda: token(RSA, headers={"kid": ""}), "an unknown key"),
    "a number for a kid": (lambda: f"{part({'alg': 'RS256', 'kid': 1})}.{part(claims())}.{part(b'x')}", "unreadable"),
    "null for a kid": (lambda: f"{part({'alg': 'RS256', 'kid': None})}.{part(claims())}.{part(b'x')}", "unreadable"),
    "an unknown crit": (lambda: token(RSA, headers={"crit": ["exp"], "exp": soon(60)}), "unreadable"),
    "a crit that PyJWT knows": (lambda: by_hand(crit=["b64"], b64=True), "a crit"),
    "an empty crit": (lambda: token(RSA, headers={"crit": []}), "unreadable"),
    "a payload beside the token": (lambda: unsigned("RS256", part(b"x"), b64=False), "unreadable"),
    "a huge token": (lambda: token(RSA, filling="x" * 16 * 1024), "too long"),
    "nested too deep": (lambda: f"{part(b'[' * 5000)}.{part(claims())}.{part(b'x')}", "unreadable"),
    "no JSON": (lambda: f"{part(b'x')}.{part(b'y')}.{part(b'z')}", "unreadable"),
    "a list for a payload": (lambda: signed_by(RSA, [claims()]), "unreadable"),
    "two parts": (lambda: token(RSA).rpartition(".")[0], "unreadable"),
    "four parts": (lambda: f"{token(RSA)}.x", "unreadable"),
    "five parts": (lambda: f"{part({'alg': 'RSA-OAEP', 'enc': 'A256GCM'})}.a.b.c.d", "unreadable"),
    "no token": (lambda: "x", "unreadable"),
    "an API key": (lambda: ALICE.key, "unreadable"),
}


@pytest.mark.parametrize("case", BAD_TOKENS)
async def test_a_bad_token_is_refused_in_the_same_words(tokens: Authenticator, case: str, log: list[str]) -> None:
    """Each for a reason of its own, which the log tells; the token and its claims stay out of it."""
    made, reason = BAD_TOKENS[case]
    assert await refusal(tokens, asking(f"Bearer {made()}")) == NO_TOKEN
    assert log == [f"INFO reason=<{reason}> | a credential was refused"]


@pytest.mark.parametrize(
    "sent",
    [
        *NO_CREDENTIAL,
        pytest.param([f"Basic {token(RSA)}"], id="Basic"),
        pytest.param([f"Bearer {token(RSA)}"] * 2, id="two headers"),
        pytest.param([token(RSA)], id="without a scheme"),
    ],
)
async def test_what_is_no_token_is_refused_in_the_same_words(tokens: Authenticator, sent: list[str | bytes]) -> None:
    assert await refusal(tokens, asking(*sent)) == NO_TOKEN


async def test_a_huge_token_is_not_read(tokens: Authenticator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt, "get_unverified_header", None)
    assert await refusal(tokens, asking(f"Bearer {'x' * (authentication.MAX_TOKEN_BYTES + 1)}")) == NO_TOKEN


async def test_a_token_without_a_kid_is_refused_where_two_keys_fit(tmp_path: Path) -> None:
    tokens = with_keys(tmp_path, RSA, rsa_key("next"), EC)
    assert await refusal(tokens, asking(f"Bearer {token(RSA, headers={'kid': None})}")) == NO_TOKEN
    assert await tokens.principal_of(asking(f"Bearer {token(EC, headers={'kid': None})}")) == Principal("alice")
    assert await tokens.principal_of(asking(f"Bearer {token(rsa_key('next'))}")) == Principal("alice")


@pytest.mark.parametrize("header", ["jku", "x5u"])
async def test_no_address_in_a_token_is_called(tmp_path: Path, header: str) -> None:
    """Neither on the way to a refusal nor beside it, and not where the token's own key would be there."""
    with Issuer(rsa_key("attacker")) as attacker, Issuer(RSA) as issuer:
        told = make_authenticator(
            read_settings(auth="jwt", jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks=issuer.url)
        )
        for authenticator in (with_keys(tmp_path, RSA), told):
            for kid in (RSA.kid, "attacker", None):
                bad = token(rsa_key("attacker"), headers={header: attacker.url, "kid": kid})
                assert await refusal(authenticator, asking(f"Bearer {bad}")) == NO_TOKEN
        assert (attacker.requests, issuer.requests) == (0, 2)  # the issuer at first, and for the unknown kid


# ---- where the keys are


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer(RSA) as running:
        yield running


@pytest.mark.parametrize(
    ("content", "line"),
    [
        pytest.param(None, "No such file or directory", id="no file"),
        pytest.param(b"{", "it cannot be read as a JWKS", id="no JWKS"),
        pytest.param(jwks(RSA.jwk(use="enc")), "it holds no key that can be used for RS256 or ES256", id="no key"),
    ],
)
def test_a_start_without_usable_keys_is_refused(tmp_path: Path, content: bytes | None, line: str) -> None:
    path = tmp_path / "jwks.json"
    if content is not None:
        path.write_bytes(content)
    settings = read_settings(auth="jwt", jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks=str(path))
    with pytest.raises(SettingsError) as error:
        make_authenticator(settings)
    assert str(error.value) == f"JWT_JWKS={str(path)!r}: {line}"


async def test_nothing_is_fetched_before_a_token_comes(issuer: Issuer) -> None:
    told = make_authenticator(read_settings(auth="jwt", jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks=issuer.url))
    await refusal(told, asking())
    await refusal(told, asking("Bearer x"))
    await refusal(told, asking(f"Bearer {unsigned('none')}"))
    assert issuer.requests == 0
    assert await told.principal_of(asking(f"Bearer {token(RSA)}")) == Principal("alice")
    assert await told.principal_of(asking(f"Bearer {token(RSA, sub='bob')}")) == Principal("bob")
    assert issuer.requests == 1


async def test_without_any_keys_it_is_not_known_who_asks(issuer: Issuer, log: list[str]) -> None:
    issuer.status = 503
    told = make_authenticator(read_settings(auth="jwt", jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks=issuer.url))
    for _ in range(50):
        with pytest.raises(AuthenticationUnavailable, match=r"cannot be fetched now\. Try again\.$"):
            await told.principal_of(asking(f"Bearer {token(RSA)}"))
    assert issuer.requests <= 2, "once a second"
    assert all("503" in line for line in log)
