"""The fake Bedrock as a process, for tests of any kind."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.stack import ROOT, clean_environment

Line = dict[str, Any]


@dataclass
class RunningFakeBedrock:
    """A process that listens at `url`. `cert`: the PEM file to trust, with TLS."""

    url: str
    cert: Path | None
    process: subprocess.Popen[str]
    log_file: Path
    _lines: list[Line] = field(default_factory=list, repr=False)
    _read: int = 0  # bytes of the log behind _lines

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def log(self, name: str | None = None) -> list[Line]:
        """The lines so far, oldest first; with `name` those about requests whose script bears it."""
        with self.log_file.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # the last line may still be on its way
        self._read += len(whole)
        self._lines += [json.loads(line) for line in whole.splitlines()]
        return [line for line in self._lines if name is None or line.get("name") == name]

    def wait_for(self, predicate: Callable[[Line], bool], seconds: float = 5) -> Line:
        """The first line that `predicate` accepts. It blocks: a test with an event loop calls it in a thread.

        Raises: TimeoutError with the log.
        """
        deadline = time.monotonic() + seconds
        while True:
            lines = self.log()
            for line in lines:
                if predicate(line):
                    return line
            if time.monotonic() > deadline:
                raise TimeoutError("no such line:\n" + "\n".join(map(str, lines)))
            time.sleep(0.01)  # polled because a foreign process' file gives no event to wait for

    def end(self, sig: int = signal.SIGTERM) -> int:
        """Send a signal and wait. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        status = self.process.wait(timeout=10)
        if self.process.stdout:
            self.process.stdout.close()
        return status


def settings_for(url: str, directory: Path) -> dict[str, str]:
    """Settings of a replica whose model is Bedrock at this address, and that reads no file of the machine's own."""
    return {
        "MODEL_PROVIDER": "bedrock",
        "BEDROCK_MODEL_ID": "amazon.nova-lite-v1:0",
        "AWS_REGION": "us-west-2",
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(directory / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(directory / "none"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@contextlib.contextmanager
def running_fake_bedrock(directory: Path, tls: bool = False) -> Iterator[RunningFakeBedrock]:
    """Start a fake Bedrock on a free port of 127.0.0.1, its log below `directory`; end it on the way out."""
    directory.mkdir(parents=True, exist_ok=True)
    log_file, errors = directory / "bedrock.jsonl", directory / "bedrock.err"
    log_file.touch()
    command = [sys.executable, "-m", "local.fake_bedrock", "--port", "0", "--log", str(log_file)]
    cert = None
    if tls:
        cert, key = self_signed(directory)
        command += ["--tls-cert", str(cert), "--tls-key", str(key)]
    with errors.open("wb") as err:
        process = subprocess.Popen(
            command,
            env={**clean_environment(), "PYTHONPATH": str(ROOT)},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    fake = RunningFakeBedrock("", cert, process, log_file)
    try:
        assert process.stdout
        fake.url = process.stdout.readline().removeprefix("fake Bedrock on ").strip()
        if not fake.url:
            raise RuntimeError(f"the fake Bedrock does not serve:\n{errors.read_text()}")
        yield fake
    finally:
        fake.end()


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, PEM files that hold for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, plain))
    return cert_file, key_file
