"""The command line. See the package for what it does."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from local.runtime_api.environment import Environment, InitFailed
from local.runtime_api.invocation import Ending, Invocation


def main() -> int:
    """Returns the exit status: 0 when every event was answered."""
    parser = argparse.ArgumentParser(
        prog="python -m local.runtime_api", description="A Lambda function on this machine, invoked with events."
    )
    parser.add_argument("--event", type=Path, action="append", required=True, help="a JSON file; may be given again")
    parser.add_argument("--extension", action="append", default=[], help="a program to run beside the function")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds an invocation may take (60)")
    parser.add_argument("command", nargs="+", help="the function, after --")
    options = parser.parse_args()
    try:
        events = [path.read_bytes() for path in options.event]
        with Environment(
            [str(Path(options.command[0]).resolve()), *options.command[1:]],
            extensions=[str(Path(program).resolve()) for program in options.extension],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            task_root=Path.cwd(),
        ) as environment:
            print(f"INIT {environment.init_seconds:.2f} s", file=sys.stderr)
            return max(_invoke(environment, event, options.timeout) for event in events)
    except (InitFailed, OSError) as error:
        print(f"runtime_api: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _invoke(environment: Environment, event: bytes, timeout: float) -> int:
    invocation = environment.invoke(event, timeout)
    headed = False
    for chunk in invocation.read():
        if not headed:
            headed = _show_prelude(invocation)
        sys.stdout.buffer.write(chunk.data)
        sys.stdout.buffer.flush()
    print(f"END {invocation.ending} {_took(invocation)}{_error(invocation)}", file=sys.stderr)
    return 0 if invocation.ending is Ending.ANSWERED else 1


def _show_prelude(invocation: Invocation) -> bool:
    if prelude := invocation.prelude:
        lines = [f"{prelude.status}", *(f"{name}: {value}" for name, value in prelude.headers.items()), ""]
        print("\n".join(lines), file=sys.stderr)
    return True


def _took(invocation: Invocation) -> str:
    begun, ended = invocation.begun_at or time.monotonic(), invocation.ended_at or time.monotonic()
    return f"{(ended - begun) * 1000:.0f} ms"


def _error(invocation: Invocation) -> str:
    return f" {invocation.error.get('errorType')}: {invocation.error.get('errorMessage')}" if invocation.error else ""


if __name__ == "__main__":
    sys.exit(main())
