"""Who asks, and which chats are theirs. Pure.

Every principal has chat ids of its own. Behind the routes a chat is known by its scoped id, `<principal>/<chat_id>`:
every key, message, list and document is named by it, so that no call can reach what is another's. The principal is
percent-encoded there, and a chat id holds no slash, so that no two pairs give the same scoped id. Where nobody is
asked who they are (AUTH=none) there is one principal, and the scoped id is the chat id.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import quote, unquote

MAX_NAME_BYTES = 256  # of UTF-8: encoded it is at most three times as long, which a key of S3 has room for


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a credential names. `admin`: may stop what is another's."""

    name: str = ""
    admin: bool = False

    @property
    def namespace(self) -> str:
        """What stands before the slash of its scoped ids."""
        return _namespace_of(self.name)

    def scoped(self, chat_id: str) -> str:
        """The id by which this principal's chat is known behind the routes."""
        return scoped(self.name, chat_id)


ANYONE = Principal("", admin=True)  # AUTH=none


def is_name(name: str) -> bool:
    """Whether a principal can be called so."""
    try:
        return 0 < len(name.encode()) <= MAX_NAME_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False


def scoped(name: str, chat_id: str) -> str:
    """The scoped id of the chat that `name` calls `chat_id`."""
    return f"{_namespace_of(name)}/{chat_id}" if name else chat_id


def _namespace_of(name: str) -> str:
    # `.` and `..` are steps in a path to some, S3's proxies among them.
    return quote(name, safe="@") if name.strip(".") else name.replace(".", "%2E")


def split(scoped_id: str) -> tuple[str, str]:
    """The principal's name and the chat id of a scoped id."""
    name, _, chat_id = scoped_id.rpartition("/")
    return unquote(name), chat_id


def namespace(scoped_id: str) -> str:
    """What stands before the slash: whose the chat is, as keys and directories are named. Empty with AUTH=none."""
    return scoped_id.rpartition("/")[0]


def chat_id_of(scoped_id: str) -> str:
    """The chat's id, as its client knows it."""
    return scoped_id.rpartition("/")[2]


class LimitReached(Exception):
    """A principal has as much as it may. The text is for a person; `retry_after` in seconds."""

    def __init__(self, words: str, retry_after: float) -> None:
        super().__init__(words)
        self.retry_after = max(1, math.ceil(retry_after))
