"""Whether anything that is pinned has a known vulnerability: `make audit`, which `make check` runs.

pip-audit asks OSV, or PyPI where OSV does not answer; OSV is asked about the web page's libraries as well. A network
may reach neither, and a mirror of PyPI may answer 404 to everything, on which pip-audit says that it knows no
vulnerability. So a release with published vulnerabilities is asked about first: where that one is not found, nothing
was audited, and one line says so. That alone passes. A finding, a package that the service does not know, and an error
of pip-audit itself fail.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PIP_AUDIT = ROOT / ".venv-audit/bin/pip-audit"
VENDOR = ROOT / "layers/haltline/haltline/web/vendor/README.md"
# What may disagree on a version is asked about separately: pip-audit takes one version of a package at a time.
LOCKS = (("runtime", "local", "lambda", "dev"), ("model",), ("uv",), ("sam",), ("audit",))
OSV = "https://api.osv.dev/v1/query"
KNOWN = {"PyPI": ("django", "3.0.2"), "npm": ("marked", "0.3.6")}  # vulnerable, and old enough to stay known
TIMEOUT = 5  # s, of one request
# How pip-audit ends where a request failed: it says so, or dies of requests' exception or of its own.
_NETWORK = re.compile(r"network may be blocking|requests\.exceptions\.|_service\.interface\.(Connection|Service)Error")


class Unreachable(Exception):
    """The service did not answer, or knows no vulnerabilities."""


class AuditFailed(Exception):
    """What a person has to look at."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask about what is pinned. Returns the exit status, 1 where something is to be done."""
    parser = argparse.ArgumentParser(prog="python -m local.audit", description="Audit what is pinned.")
    parser.add_argument("--osv-url", default=OSV, metavar="URL", help="another server that speaks OSV's API")
    parser.add_argument("--passed", type=Path, metavar="DIR", help="remember there that today's audit passed")
    parser.add_argument("locks", nargs="*", type=Path, metavar="LOCK", help="these, not those of requirements/")
    args = parser.parse_args(arguments)
    groups = [[lock] for lock in args.locks] or [[ROOT / f"requirements/{n}.txt" for n in names] for names in LOCKS]
    mark = args.passed / _today(groups) if args.passed else None
    if mark and mark.exists():
        print("audited today:", mark.read_text())
        return 0
    try:
        said, whole = _audit(groups, args.osv_url)
    except AuditFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(said)
    if mark and whole:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(said)
    return 0


def _audit(groups: list[list[Path]], osv_url: str) -> tuple[str, bool]:
    """What to say, and whether all was audited. Raises: AuditFailed."""
    silent = []
    for service in ("osv", "pypi"):
        try:
            packages = _python(groups, service, osv_url)
            break
        except Unreachable as error:
            silent.append(f"{service}: {error}")
    else:
        return f"the dependencies were NOT audited: no advisory service answers here ({'; '.join(silent)})", False
    said = f"no known vulnerability in {packages} pinned packages ({service})"
    try:
        libraries = _npm(osv_url)
    except Unreachable as error:
        return f"{said}; web/vendor was NOT audited (osv: {error})", False
    return f"{said} and {libraries} libraries of the web page", True


def _python(groups: list[list[Path]], service: str, osv_url: str) -> int:
    """How many packages the service knows nothing bad about. Raises: Unreachable, AuditFailed."""
    options = ["--vulnerability-service", service, "--osv-url", osv_url]
    with tempfile.TemporaryDirectory() as directory:
        known = Path(directory) / "known.txt"
        known.write_text("==".join(KNOWN["PyPI"]) + "\n")
        if not any(package.get("vulns") for package in _pip_audit([known], [*options, "--no-deps"])):
            raise Unreachable("it knows no vulnerabilities")
    audited = set()
    for group in groups:
        packages = _pip_audit(group, [*options, "--require-hashes"])
        bad = [_finding(package) for package in packages if package.get("vulns") or "skip_reason" in package]
        if bad:
            raise AuditFailed("\n".join([f"{', '.join(lock.name for lock in group)}:", *bad]))
        audited |= {(package["name"], package["version"]) for package in packages}
    return len(audited)


def _pip_audit(locks: list[Path], options: list[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        command = [str(PIP_AUDIT), "--disable-pip", "--progress-spinner", "off", "--timeout", str(TIMEOUT), *options]
        command += ["--format", "json", "--output", str(report), *(f"--requirement={lock}" for lock in locks)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if report.exists():  # with findings too
            packages: list[dict[str, Any]] = json.loads(report.read_text())["dependencies"]
            return packages
    last = done.stderr.strip().rpartition("\n")[2]
    if _NETWORK.search(done.stderr):
        raise Unreachable(last.rpartition(": ")[2].partition(" (")[0].strip('")'))
    raise AuditFailed(f"pip-audit failed:\n{done.stderr}")


def _finding(package: dict[str, Any]) -> str:
    if "skip_reason" in package:
        return f"  {package['name']}: {package['skip_reason']}"
    ids = [f"{v['id']} (mended in {', '.join(v['fix_versions']) or 'no release'})" for v in package["vulns"]]
    return f"  {package['name']} {package['version']}: {'; '.join(ids)}"


def _npm(osv_url: str) -> int:
    """How many libraries of the page OSV knows nothing bad about. Raises: Unreachable, AuditFailed."""
    if not _osv("npm", *KNOWN["npm"], osv_url):
        raise Unreachable("it knows no vulnerabilities")
    libraries = re.findall(r"^\| ([\w@/.-]+) \| (\d[\w.-]*) \|", VENDOR.read_text(), re.MULTILINE)
    bad = [
        f"  {name} {version}: {', '.join(ids)}"
        for name, version in libraries
        if (ids := _osv("npm", name, version, osv_url))
    ]
    if bad or not libraries:
        raise AuditFailed("\n".join(["web/vendor:", *bad] if bad else [f"no library is listed in {VENDOR}"]))
    return len(libraries)


def _osv(ecosystem: str, name: str, version: str, url: str) -> list[str]:
    body = json.dumps({"package": {"name": name, "ecosystem": ecosystem}, "version": version}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - http(s) by its default
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            return [v["id"] for v in json.load(answer).get("vulns", []) if not v.get("withdrawn")]
    except (OSError, ValueError) as error:
        raise Unreachable(str(error)) from None


def _today(groups: list[list[Path]]) -> str:
    content = b"".join(path.read_bytes() for group in groups for path in [*group, VENDOR])
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{hashlib.sha256(content).hexdigest()[:16]}"


if __name__ == "__main__":
    sys.exit(main())
