"""What a process holds, looked at from outside, and whether it grows."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from statistics import linear_regression, median

WINDOWS = 8


def look(pid: int) -> Counter[str]:
    """Memory in KiB, threads, and open files by kind."""
    found: Counter[str] = Counter()
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size, *_ = line.split()
        if name in ("Rss:", "Private_Clean:", "Private_Dirty:"):
            found["rss" if name == "Rss:" else "uss"] += int(size)
    found["threads"] = len(os.listdir(f"/proc/{pid}/task"))
    found["sockets"] = found["files"] = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found["sockets" if os.readlink(fd).startswith("socket:") else "files"] += 1
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def ask(pid: int, directory: Path) -> int | None:
    """Tasks of the event loop, as `tests.faults.probe` last told; asks it for the next time."""
    told = directory / f"{pid}.jsonl"
    lines = told.read_text().splitlines() if told.exists() else []
    os.kill(pid, signal.SIGUSR1)
    return int(json.loads(lines[-1])["tasks"]) if lines else None


def windows(values: list[float]) -> list[float]:
    """The median of each of WINDOWS parts."""
    size = len(values) / WINDOWS
    return [median(values[round(n * size) : round((n + 1) * size)]) for n in range(WINDOWS)]


def growth(medians: list[float]) -> float:
    """What a line through the windows rises by from the first to the last, if it rises all along.

    What stepped up once, or goes up and down, is no growth: the last windows must lie above the middle ones, and these
    above the first.
    """
    first, middle, last = medians[:3], medians[3:5], medians[5:]
    if not min(last) > median(middle) > max(first):
        return 0.0
    return linear_regression(range(WINDOWS), medians).slope * (WINDOWS - 1)
