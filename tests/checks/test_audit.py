"""The dependency audit with pip-audit itself and a local server in the place of OSV and PyPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from local import audit
from tests.stack import ROOT, free_port

CLEAN, VULNERABLE, FOREIGN = "clean-package", "vulnerable-package", "package-of-nobody"
Answer = tuple[int, Any]


def _advisory(name: str, ecosystem: str = "PyPI") -> dict[str, Any]:
    fixed = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9.9"}]}
    affected = [{"package": {"name": name, "ecosystem": ecosystem}, "ranges": [fixed]}]
    return {"id": f"GHSA-{name}", "summary": "a hole", "aliases": [], "affected": affected}


def osv(question: dict[str, Any], page: tuple[str, ...] = ()) -> Answer:
    """OSV, as far as its API is used. `page`: libraries of the web page that it has advisories on."""
    package = question["package"]
    name, ecosystem = package["name"], package["ecosystem"]
    known = (name, question["version"]) == audit.KNOWN[ecosystem] or name == VULNERABLE or name in page
    return 200, {"vulns": [_advisory(name, ecosystem)]} if known else {}


def pypi(path: str) -> Answer:
    _, _, name, version, _ = path.split("/")
    if name == FOREIGN:
        return 404, {}
    known = (name, version) == audit.KNOWN["PyPI"] or name == VULNERABLE
    hole = {"id": f"PYSEC-{name}", "aliases": [], "fixed_in": ["9.9"], "summary": "a hole", "details": ""}
    return 200, {"info": {}, "vulnerabilities": [hole] if known else []}


@contextmanager
def serving(answer: Callable[[str, str], Answer]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            status, content = answer(self.path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Audit one lock. PyPI's address is written into pip-audit: there requests is told another one."""

    def _run(name: str, osv_url: str, pypi_url: str = "", *arguments: str) -> tuple[int, str]:
        lock = tmp_path / "lock.txt"
        lock.write_text(f"{name}==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
        (tmp_path / "sitecustomize.py").write_text(
            "try:\n    import requests\nexcept ImportError:\n    pass\nelse:\n"
            "    real = requests.Session.request\n"
            "    def request(self, method, url, *args, **kwargs):\n"
            f"        url = url.replace('https://pypi.org', {pypi_url or f'http://127.0.0.1:{free_port()}'!r})\n"
            "        return real(self, method, url, *args, **kwargs)\n"
            "    requests.Session.request = request\n"
        )
        done = subprocess.run(
            [sys.executable, "-m", "local.audit", "--osv-url", f"{osv_url}/v1/query", *arguments, str(lock)],
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "NO_PROXY": "127.0.0.1", "PIP_NO_CACHE_DIR": "1"}
            | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return _run


def test_a_pin_with_a_known_vulnerability_fails_the_check(run) -> None:
    with serving(lambda _, body: osv(json.loads(body))) as url:
        status, said = run(VULNERABLE, url)
    assert (status, "vulnerable-package 1.0: GHSA-vulnerable-package (mended in 9.9)" in said) == (1, True), said


def test_clean_pins_pass_and_are_asked_about_once_a_day(run, tmp_path: Path) -> None:
    asked = []

    def answer(_: str, body: str) -> Answer:
        asked.append(json.loads(body)["package"]["name"])
        return osv(json.loads(body))

    passed = ("--passed", str(tmp_path / "passed"))
    with serving(answer) as url:
        status, said = run(CLEAN, url, "", *passed)
        assert (status, said) == (
            0,
            "no known vulnerability in 1 pinned packages (osv) and 3 libraries of the web page\n",
        )
        assert asked == ["django", CLEAN, "marked", "marked", "dompurify", "swagger-ui-dist"]
        status, said = run(CLEAN, url, "", *passed)
    assert (status, said.startswith("audited today: no known vulnerability"), len(asked)) == (0, True, 6), said


def test_a_library_of_the_page_with_a_known_vulnerability_fails_the_check(run) -> None:
    with serving(lambda _, body: osv(json.loads(body), page=("dompurify",))) as url:
        status, said = run(CLEAN, url)
    assert (status, "dompurify 3." in said) == (1, True), said


def test_where_no_service_answers_one_line_says_that_nothing_was_audited(run, tmp_path: Path) -> None:
    status, said = run(VULNERABLE, f"http://127.0.0.1:{free_port()}", "", "--passed", str(tmp_path / "passed"))
    assert (status, said.count("\n"), "NOT audited" in said, "refused" in said) == (0, 1, True, True), said
    assert not (tmp_path / "passed").exists(), "it must be tried again"


@pytest.mark.parametrize("status", [404, 503])
def test_a_mirror_that_answers_nothing_but_errors_has_audited_nothing(run, status: int) -> None:
    """On 404 pip-audit itself says "No known vulnerabilities found" and ends with 0."""
    with serving(lambda *_: (status, {})) as url:
        ended, said = run(VULNERABLE, url, url)
    assert (ended, said.count("\n"), "NOT audited" in said) == (0, 1, True), said


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        (VULNERABLE, 1, "PYSEC-vulnerable-package"),
        (CLEAN, 0, "1 pinned packages (pypi); web/vendor was NOT audited"),
        (FOREIGN, 1, "could not be audited"),
    ],
)
def test_pypi_is_asked_where_osv_does_not_answer(run, name: str, status: int, told: str) -> None:
    with serving(lambda path, _: pypi(path)) as url:
        ended, said = run(name, f"http://127.0.0.1:{free_port()}", url)
    assert (ended, told in said) == (status, True), said


def test_what_is_no_network_failure_fails_the_check(run) -> None:
    with serving(lambda _, body: osv(json.loads(body))) as url:
        status, said = run("not a lock", url)
    assert (status, "pip-audit failed" in said) == (1, True), said
