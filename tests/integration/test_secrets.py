"""Nothing that is private is in any log, at the most talkative level, whatever goes wrong.

Real replicas serve, one as a developer runs it (the scripted model, AUTH=none) and one as production does (Bedrock,
AUTH=api-keys).
Everything private that reaches them holds a word that stands nowhere else. All that the processes write is searched for
these words once they have ended.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import redis

from tests.contract.client import script
from tests.fake_bedrock import running_fake_bedrock, settings_for
from tests.stack import Replica, running_stack

TALKATIVE = {"LOG_LEVEL": "TRACE", "AGENT": "tests.integration.quoting_agents:make"}


class Words(defaultdict[str, str]):
    """What is private, by what it is: each time a name is new, a word that nobody has used."""

    def __missing__(self, name: str) -> str:
        self[name] = f"private{secrets.token_hex(12)}"
        return self[name]


class Traffic:
    """Everything that a client can send to one replica, good and bad."""

    def __init__(self, replica: Replica, words: Words, sessions: Path) -> None:
        self._words, self._sessions, self._about = words, sessions, replica.name
        self._key = {"Authorization": f"Bearer {words['the API key']}"}
        self.http = httpx.Client(base_url=replica.url, headers=self._key, timeout=20, trust_env=False)

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def say(self, what: str, message: str = "{}", **told: Any) -> httpx.Response:
        """Send a message that holds a private word; `told`: its script, in which {} is another."""
        word, answer = self._words[f"{what} (message)"], self._words[f"{what} (script)"]
        text = message.format(word)
        if told:
            text += " " + script(**json.loads(json.dumps(told).replace("{}", answer)))
        chat = f"/api/v1/chat/{what.replace(' ', '-')}-{self._about}"
        return self.http.post(chat, json={"message": text})

    def turns(self) -> None:
        """Turns that go well, and that fail in every way an agent can."""
        assert self.say("a turn", chunks=["said ", "{}"]).text.endswith("[DONE]\n\n")
        for how in ("raise", "thread", "task", "drop", "library"):
            self.say(f"agents that {how}", f"{how} {{}}", chunks=["{}"])
        transcript = self.http.get(f"/api/v1/chat/a-turn-{self._about}/messages").text
        assert self._words["a turn (message)"] in transcript
        assert self._words["a turn (script)"] in transcript

    def refused(self) -> None:
        """Bodies, heads, paths and queries that are refused, and credentials that are wrong."""
        url, word = f"/api/v1/chat/refused-{self._about}", self._words["what is refused"]
        for body in ({"message": word * 4000}, {"message": [word]}, {word: word}, {"message": "x", "run_id": word}):
            assert self.http.post(url, json=body).status_code in (413, 422)
        for content in (f'{{"message": "{word}', f"\xff{word}".encode("latin-1"), f"[{word}" * 900):
            assert self.http.post(url, content=content).status_code in (413, 422)
        self.http.post("/api/v1/stop/bulk", json={"chat_ids": [f"{word}/{word}", 7]})
        query = self._words["a query"]
        for path in (f"{url}?if_running={query}", f"/api/v1/chats?cursor={query}&limit={query}", f"/none?key={query}"):
            assert self.http.get(path).status_code in (200, 404, 405, 422)
        self.http.post(f"/api/v1/stop/refused-{self._about}?wait={query}")
        header = self._words["a header"]
        told = {"Cookie": header, "X-Request-Start": f"t={header}", "X-Forwarded-For": header, "User-Agent": header}
        wrong = self._words["a wrong credential"]
        for value in (
            f"Bearer {wrong}",
            f"Basic {wrong}",
            wrong,
            f"Bearer {wrong} {wrong}",
            f"Bearer {'x' * 9000}{wrong}",
        ):
            self.http.get(url, headers={"Authorization": value, **told})

    def failures(self) -> None:
        """A chat that is damaged, and its deletion."""
        damaged = f"damaged-{self._about}"
        self.http.post(f"/api/v1/chat/{damaged}", json={"message": f"{self._words['a damaged chat']} of {damaged}"})
        files = [file for file in self._sessions.rglob("*.json") if f" of {damaged}" in file.read_text()]
        files[0].write_text('{"messages": "' + self._words["a damaged chat"])
        for method in ("GET", "POST", "DELETE"):
            self.http.request(method, f"/api/v1/chat/{damaged}", json={"message": "hello"})

    def of_scripted(self) -> None:
        """Tools and a model that fail."""
        for name, value in (("shout", "{}"), ("shout", "fail {}"), ("unknown", "{}")):
            self.say(f"tool {name} {value[:4]}", tool={"name": name, "input": {"text": value}}, chunks=["{}"])
        self.say("a model that fails", chunks=["{}"], fail="cannot say {}")

    def of_bedrock(self) -> None:
        """The same, and refusals that quote what they refuse."""
        quote = "The value {} is not allowed here."
        for code, status in (("ValidationException", 400), ("AccessDeniedException", 403), ("Odd", 500)):
            self.say(f"refusal {code}", refuse={"status": status, "code": code, "message": quote})
        self.say("a broken stream", chunks=["{}"], fail={"code": "modelStreamErrorException", "message": quote})
        for value in ("{}", "fail {}"):
            self.say(f"tool {value[:4]}", tools=[{"name": "shout", "input": {"text": value}}], text="{}")

    def without_a_bus(self) -> None:
        """Once Redis takes the password no more."""
        while self.http.get("/health").status_code == 200:
            pass  # a foreign process gives no event to wait for
        assert self.say("without a bus").status_code == 503
        assert self.http.post(f"/api/v1/stop/without-a-bus-{self._about}").status_code == 503

    def told(self) -> Iterator[str]:
        """What anyone may read."""
        for path in ("/health", "/metrics", "/openapi.json", "/live"):
            yield self.http.get(path).text


def refusing_s3(words: Words) -> HTTPServer:
    """An S3 that accepts no credentials, and says which."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self.rfile.read(length)
            said = f"{words['an AWS secret']} {self.headers.get('Authorization')} {words['an answer of S3']}"
            body = f"<Error><Code>InvalidAccessKeyId</Code><Message>No such key: {said}</Message></Error>".encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    return HTTPServer(("127.0.0.1", 0), Handler)


@pytest.mark.timeout(180)
def test_nothing_private_is_in_any_log(tmp_path: Path) -> None:
    words = Words()
    words["the hash of the API key"] = hashlib.sha256(words["the API key"].encode()).hexdigest()
    keys = {"AUTH": "api-keys", "API_KEYS": f"someone={words['the hash of the API key']}"}
    logs = tmp_path / "logs"
    env = {**TALKATIVE, "LOG_DIR": str(logs)}
    with running_fake_bedrock(tmp_path / "bedrock") as bedrock, running_stack(tmp_path, replicas=0) as stack:
        bus = redis.Redis.from_url(stack.redis_url)
        bus.acl_setuser("haltline", enabled=True, passwords=[f"+{words['the password of Redis']}"], reset=True)
        bus.execute_command("ACL", "SETUSER", "haltline", "~*", "&*", "+@all")
        url = stack.redis_url.replace("//", f"//haltline:{words['the password of Redis']}@")
        aws = settings_for(bedrock.url, tmp_path) | {
            "AWS_ACCESS_KEY_ID": words["an AWS key"],
            "AWS_SECRET_ACCESS_KEY": words["an AWS secret"],
            "AWS_SESSION_TOKEN": words["an AWS token"],
        }
        scripted = stack.add_replica(REDIS_URL=url, ENVIRONMENT="development", **env)
        on_bedrock = stack.add_replica(REDIS_URL=url, ENVIRONMENT="production", **{**env, **aws, **keys})
        s3 = refusing_s3(words)
        threading.Thread(target=s3.serve_forever, daemon=True).start()
        at_s3 = {"SESSION_STORE": "s3", "SESSION_BUCKET": "chats", "ENVIRONMENT": "production"}
        at_s3["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{s3.server_port}"
        refused = stack.add_replica(REDIS_URL=url, **{**env, **aws, **at_s3})
        told: list[str] = []
        for replica in (scripted, on_bedrock):
            replica.wait_until_live()
            with Traffic(replica, words, stack.session_dir) as traffic:
                traffic.turns()
                traffic.refused()
                traffic.failures()
                told += traffic.told()
                (traffic.of_scripted if replica is scripted else traffic.of_bedrock)()
        assert refused.process.wait(timeout=30) == 2, "S3 takes nobody, so a start is refused"
        s3.shutdown()
        s3.server_close()
        # From here on nobody is let in by Redis with that password.
        bus.acl_setuser("haltline", enabled=True, passwords=[f"+{secrets.token_hex(12)}"], reset_passwords=True)
        bus.client_kill_filter(user="haltline")
        for replica in (scripted, on_bedrock):
            with Traffic(replica, words, stack.session_dir) as traffic:
                traffic.without_a_bus()
                told += traffic.told()
        bus.close()
        for replica in (scripted, on_bedrock):
            replica.end()
        written = {file: file.read_text() for file in (*tmp_path.glob("*.log"), *logs.glob("*.log"))}
    assert len(written) == 6, "stderr and LOG_DIR, of three"
    found = [
        f"{what}: {line.replace(word, '<HERE>')[:300]}"
        for what, word in words.items()
        for line in "\n".join((*written.values(), *told)).splitlines()
        if word in line
    ]
    assert found == []
    # The logs say all the same what went on.
    log = "".join(written.values())
    for sign in (
        "run begun",
        "the run failed",
        "a thread failed",
        "could not be raised",
        "never retrieved",
        "the signal bus does not answer",
        "answered 503",
        "ValidationException",
        "DEBUG",
    ):
        assert sign in log, sign
    assert re.search(r"^[ |]+raise ExceptionGroup\(", log, re.MULTILINE), "tracebacks name the place"
