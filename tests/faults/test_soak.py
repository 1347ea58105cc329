"""Hours in ten minutes: chats used at random for a long time, and nothing grows, fails, or is told wrongly.

Left out of the short round; SOAK_SECONDS=180 takes another time than the ten minutes of the long one.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import redis

from tests.fake_bedrock import running_fake_bedrock, settings_for
from tests.faults.conftest import FULL
from tests.faults.gauges import ask, growth, look, windows
from tests.stack import ROOT, Replica, Stack, clean_environment, running_stack

SECONDS = float(os.environ.get("SOAK_SECONDS") or (600 if FULL else 0))
WARM_UP = 0.2  # of that
KNOWN_FOR_EVER = {f"{name}:{{chats}}" for name in ("index", "info", "live", "whole")}  # the list of chats

# How far a line through the windows may rise: KiB; pieces. Memory has noise of its own: what 8 windows of an idle
# allocator differ by. One object kept a run would be some 5 sockets, tasks or keys a second.
ALLOWED = {"rss": 3000, "uss": 3000, "threads": 3, "sockets": 6, "files": 3, "tasks": 6, "keys": 20, "endless": 0}


@pytest.mark.skipif(not SECONDS, reason="a soak takes ten minutes: FAULTS_FULL or SOAK_SECONDS asks for it")
@pytest.mark.timeout(SECONDS + 180)
def test_nothing_grows_while_chats_come_and_go(tmp_path: Path, rnd: random.Random) -> None:
    with running_fake_bedrock(tmp_path / "bedrock") as fake, running_stack(tmp_path, replicas=0) as stack:
        # A named stop and a record lie in Redis for as long as these say: what is flat after that did not grow.
        probed = {"STOP_SIGNAL_TTL": "15", "RUN_TIMEOUT": "60"}
        probed |= {"AGENT": "tests.faults.probe:make_agent", "PROBE_DIRECTORY": str(tmp_path)}
        bedrock = settings_for(fake.url, tmp_path)
        for replica in (stack.add_replica(**probed), stack.add_replica(**probed, **bedrock)):
            replica.wait_until_live(60)
        report, samples = _under_load(stack, tmp_path, rnd.randrange(10**6))
        logs = {replica.name: replica.log.read_text() for replica in stack.replicas}
        kept = _keys(stack)

    print(json.dumps({k: v for k, v in report.items() if k != "wrong"}))
    grown = _print_table(samples)
    assert not report["wrong"], "\n".join(report["wrong"][:20])
    assert report["streams"] > SECONDS, "hardly anything was asked"
    assert kept <= KNOWN_FOR_EVER, "keys without an end"
    for name, log in logs.items():
        loud = [line for line in log.splitlines() if re.search(r" (WARNING|ERROR|CRITICAL) |Traceback", line)]
        assert loud == [], (name, loud[:10])
    assert not grown, grown


def _under_load(stack: Stack, directory: Path, seed: int) -> tuple[dict, dict[str, dict[str, list[float]]]]:
    """Let the load process work, and look at the replicas once a second, but not while they warm up."""
    command = [sys.executable, "-m", "tests.faults.load", str(SECONDS), str(seed), stack.redis_url]
    command += [replica.url for replica in stack.replicas]
    samples: dict[str, dict[str, list[float]]] = {}
    with (directory / "load.log").open("w+") as errors, redis.Redis.from_url(stack.redis_url) as bus:
        load = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=errors)
        try:
            warm = time.monotonic() + WARM_UP * SECONDS
            while load.poll() is None:
                if warm < time.monotonic() < warm + (1 - WARM_UP) * SECONDS:
                    for replica in stack.replicas:
                        _sample(replica, directory, samples.setdefault(replica.name, {}))
                    kept = samples.setdefault("redis", {})
                    kept.setdefault("keys", []).append(float(bus.dbsize()))
                    kept.setdefault("endless", []).append(float(len(_keys(stack))))
                try:
                    load.wait(1)
                except subprocess.TimeoutExpired:
                    continue
            said = load.stdout.read() if load.stdout else b""
        finally:
            if load.poll() is None:
                load.kill()
            load.wait()
            if load.stdout:
                load.stdout.close()
        errors.seek(0)
        assert load.returncode == 0, errors.read()[-2000:]
    return json.loads(said), samples


def _sample(replica: Replica, directory: Path, into: dict[str, list[float]]) -> None:
    found: Counter[str] = look(replica.process.pid)
    if (tasks := ask(replica.process.pid, directory)) is not None:
        found["tasks"] = tasks
    for name, value in found.items():
        into.setdefault(name, []).append(value)


def _keys(stack: Stack) -> set[str]:
    """The keys that have no end."""
    with redis.Redis.from_url(stack.redis_url, decode_responses=True) as client:
        return {key for key in client.scan_iter(count=1000) if client.ttl(key) == -1}


def _print_table(samples: dict[str, dict[str, list[float]]]) -> list[str]:
    """The median of each window. Returns what has grown."""
    grown = []
    print(f"\n{'':20}" + "medians of eight windows".center(72) + "growth")
    for name, gauges in samples.items():
        for gauge, values in gauges.items():
            medians = windows(values)
            rise = growth(medians)
            print(f"{name:10}{gauge:10}" + "".join(f"{value:9.0f}" for value in medians) + f"{rise:9.1f}")
            if rise > ALLOWED[gauge]:
                grown.append(f"{gauge} of {name} grew by {rise:.0f}")
    return grown
