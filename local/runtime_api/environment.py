"""The processes of one function, and the Runtime API they ask."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from local.runtime_api.api import RuntimeAPI
from local.runtime_api.invocation import Ending, Invocation

LAST_WORDS = 2.0  # seconds between SIGTERM and SIGKILL, as on Lambda


class InitFailed(Exception):
    """The function ended, or said so, before it asked for an event; the text says what it printed last."""


class Environment:
    """`with` starts the processes, one group of them, and ends them.

    Args:
        command: what Lambda's exec wrapper runs, as `functions/chat/run.sh`.
        extensions: programs that run beside it.
        env: added to what Lambda sets itself; the environment of this process is not passed on.
        task_root: the working directory, where the code is on Lambda.
        log: a file for all that they print; None passes it on to stderr.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        extensions: Sequence[str] = (),
        env: Mapping[str, str],
        task_root: Path,
        log: Path | None = None,
    ) -> None:
        name = env.get("AWS_LAMBDA_FUNCTION_NAME", "haltline-chat")
        self.api = RuntimeAPI(name, on_timeout=self.kill)
        self.log_stream = f"{time.strftime('%Y/%m/%d')}/[$LATEST]{uuid.uuid4().hex}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.init_seconds = 0.0
        self._commands = [[program] for program in extensions] + [list(command)]
        self._env = self._lambda_env(name, task_root) | dict(env)
        self._task_root, self.log = task_root, log
        self._over = threading.Event()

    def _lambda_env(self, name: str, task_root: Path) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "AWS_REGION": "us-west-2",
            "AWS_DEFAULT_REGION": "us-west-2",
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
            "AWS_LAMBDA_FUNCTION_NAME": name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": self.log_stream,
            "AWS_LAMBDA_RUNTIME_API": self.api.address,
            "LAMBDA_TASK_ROOT": str(task_root),
        }

    def __enter__(self) -> Environment:
        begun = time.monotonic()
        try:
            for command in self._commands:
                self._start(command)
            self._wait_until_idle(60)
        except BaseException:
            self.__exit__()
            raise
        self.init_seconds = time.monotonic() - begun
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + LAST_WORDS
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))
        self.kill()
        for process in self.processes:
            process.wait()
        self.api.close()

    def _start(self, command: list[str]) -> None:
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(self.log.open("ab")) if self.log else 2
            process = subprocess.Popen(
                command,
                env=self._env,
                cwd=self._task_root,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                process_group=self.processes[0].pid if self.processes else 0,
            )
        self.processes.append(process)
        threading.Thread(target=self._watch, args=[process, command[0]], daemon=True).start()

    def _watch(self, process: subprocess.Popen[bytes], name: str) -> None:
        status = process.wait()
        self._over.set()
        said = f"{Path(name).name} ended with status {status}"
        self.api.fail(Ending.EXITED, {"errorType": "Runtime.ExitError", "errorMessage": said})

    def _wait_until_idle(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.api.idle.wait(0.02):
            if self._over.is_set() or self.api.init_error or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")[-4000:] if self.log else "see above"
                raise InitFailed(f"no event was asked for: {self.api.init_error or ''}\n{said}")

    def invoke(self, event: bytes, timeout: float = 60) -> Invocation:
        """Invoke the function, whose processes run on if they were frozen. One invocation at a time.

        Args:
            event: JSON.
            timeout: seconds it may take; the environment is over when it takes longer.
        """
        self.thaw()
        return self.api.invoke(event, timeout)

    def freeze(self) -> None:
        """Stop all processes, once the function waits for an event. Raises: InitFailed where it never does."""
        self._wait_until_idle(20)
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them run on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to all, as Lambda does after a time-out."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.processes[0].pid, number)
