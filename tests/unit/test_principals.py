"""Scoped ids: no two principals, and no two chats, come upon the same one."""

from __future__ import annotations

import itertools

import pytest

from haltline.principals import ANYONE, LimitReached, Principal, chat_id_of, is_name, namespace, scoped, split

NAMES = [
    *("ada", "Ada", "ada/bob", "ada%2Fbob", "ada%252Fbob", "/ada", "ada/", "ada@example.com", "ada@example%2Ecom"),
    *(
        ".",
        "..",
        "...",
        "%2E",
        "%2E%2E",
        "a.b",
        "{ada}",
        "}{",
        "*",
        "?",
        "[a]",
        "a b",
        "a\nb",
        "a\0b",
        ":",
        "ä",
        "a\u0308",
    ),
    *("arn:aws:iam::123456789012:role/ops", "arn:aws:sts::1:assumed-role/ops/ada", "bulk", "all", "stop:x", "x" * 256),
]
CHATS = ["rome", "ada", "a.b", "a-b", "x" * 128]


def test_scoped_ids_never_meet() -> None:
    made = [scoped(name, chat) for name, chat in itertools.product(["", *NAMES], CHATS)]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", ["", *NAMES])
def test_a_scoped_id_tells_whose_it_is_and_how_its_client_calls_it(name: str) -> None:
    made = Principal(name).scoped("rome")
    assert (split(made), chat_id_of(made), namespace(made)) == ((name, "rome"), "rome", Principal(name).namespace)


@pytest.mark.parametrize("name", NAMES)
def test_a_namespace_is_one_word_of_a_path_and_of_a_key(name: str) -> None:
    word = Principal(name).namespace
    assert word.isascii()
    assert word.isprintable()
    assert not set(word) & set("/{}*?[] \\:")
    assert word.strip(".")
    assert len(f"chats/{word}/{'x' * 128}.json") <= 1024  # what S3 takes for a key


def test_without_principals_the_chat_id_is_the_key_as_a_person_would_write_it() -> None:
    assert (ANYONE.scoped("rome"), ANYONE.namespace, ANYONE.admin) == ("rome", "", True)


@pytest.mark.parametrize(
    ("name", "may"),
    [("a", True), ("x" * 256, True), ("", False), ("x" * 257, False), ("ä" * 129, False), ("\ud800", False)],
)
def test_what_a_principal_may_be_called(name: str, may: bool) -> None:
    assert is_name(name) is may


@pytest.mark.parametrize(("seconds", "told"), [(0.001, 1), (1, 1), (1.2, 2), (59.9, 60)])
def test_a_limit_says_when_to_come_again_in_whole_seconds(seconds: float, told: int) -> None:
    assert LimitReached("x", seconds).retry_after == told
