"""`python -m tests.bench [--quick] [--only PART ...]`: see the package."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from haltline import __version__
from tests.bench.figures import Figure, table
from tests.stack import ROOT

PARTS = ("stop_http", "stop_bus", "upstream", "commands", "capacity", "first_token", "chats", "memory", "starts")
NO_TIMES = ("commands", "memory", "starts")
TRIES = 3  # of a part that fails or whose gate is missed: others work on this machine, too


def main() -> int:
    """Returns the exit status: 1 where a gated bar is missed or a part failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="small counts, under a minute")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--into", type=Path, help="a directory for figures.json and figures.png")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        figures = importlib.import_module(f"tests.bench.{options.part}").measure(options.quick)
        options.into.write_text(json.dumps([figure.as_json() for figure in figures]))
        return 0
    began, figures, failed = time.monotonic(), [], []
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process that is started would compile all modules anew
    for parts in groups(options.only, quick=options.quick):
        with ThreadPoolExecutor(len(parts)) as pool:
            for part, measuring in [(part, pool.submit(measured, part, quick=options.quick)) for part in parts]:
                try:
                    figures += measuring.result()
                except subprocess.CalledProcessError:
                    failed.append(part)
    seconds = time.monotonic() - began
    print(table(figures))
    print(f"{len(figures)} figures in {seconds:.0f} s")
    if into := options.into:
        into.mkdir(parents=True, exist_ok=True)
        write(into, figures, seconds)
    if failed:
        print(f"failed, see above: {', '.join(failed)}")
    return int(bool(failed) or any(f.missed and f.gated for f in figures))


def groups(parts: Sequence[str], *, quick: bool) -> list[list[str]]:
    """Parts that are measured together: each alone, but for those of a quick run whose figures are no times."""
    together = [part for part in parts if quick and part in NO_TIMES]
    alone = [[part] for part in parts if part not in together]
    return [*alone, together] if together else alone


def measured(part: str, *, quick: bool) -> list[Figure]:
    """The figures of a part, measured in a fresh process; again where it failed or a gate is missed.

    Raises: CalledProcessError where it failed each time.
    """
    for attempt in range(1, TRIES + 1):
        began = time.monotonic()
        try:
            figures = once(part, quick=quick)
        except subprocess.CalledProcessError:
            print(f"{part}: try {attempt} of {TRIES} failed", file=sys.stderr)
            if attempt == TRIES:
                raise
            continue
        print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        missed = [f.what for f in figures if f.missed and f.gated]
        if not missed:
            break
        print(f"{part}: try {attempt} of {TRIES} missed: {'; '.join(missed)}", file=sys.stderr)
    return figures


def once(part: str, *, quick: bool) -> list[Figure]:
    """Measure a part. Raises: CalledProcessError."""
    with tempfile.TemporaryDirectory() as directory:
        into = Path(directory) / "figures.json"
        command = [sys.executable, "-m", "tests.bench", "--part", part, "--into", str(into)]
        subprocess.run([*command, *(["--quick"] if quick else [])], check=True, cwd=ROOT)
        return [Figure(**figure) for figure in json.loads(into.read_text())]


def write(into: Path, figures: list[Figure], seconds: float) -> None:
    """figures.json and figures.png."""
    from tests.bench.picture import draw  # matplotlib takes a second to import

    machine = {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "system": platform.system(),
    }
    document = {
        "haltline": __version__,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds),
        "machine": machine,
        "figures": [figure.as_json() for figure in figures],
    }
    (into / "figures.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    draw(figures, into / "figures.png")


if __name__ == "__main__":
    sys.exit(main())
