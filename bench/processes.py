"""A process and all that descend from it: memory and open handles over time, read from /proc. Linux only."""

import contextlib
import os
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """One process at one moment."""

    pid: int
    name: str
    resident_bytes: int
    num_handles: int


def family(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            children[int(after_name[1])].append(int(entry.name))
    found, queue = list[int](), [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children[pid]
    return found


def usage_of(root: int) -> list[Usage]:
    """What each of the family uses now."""
    found = []
    for pid in family(root):
        folder = Path("/proc") / str(pid)
        try:
            name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            resident_bytes = int((folder / "statm").read_text().split()[1]) * PAGE_BYTES
            num_handles = len(os.listdir(folder / "fd"))
        except OSError:
            continue
        found.append(Usage(pid, _short(name), resident_bytes, num_handles))
    return found


def _short(name: str) -> str:
    """A command without folders and most of its arguments."""
    return " ".join(word.rpartition("/")[2] for word in name.split()[:3])[:60]


class Elsewhere:
    """What programs that are no part of a measurement take of the machine meanwhile."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._started_s, self._busy_s, self._own_s = time.monotonic(), busy_s(), self._own()

    def cores(self) -> float:
        """Processors that others have kept busy since the start, on average."""
        others_s = busy_s() - self._busy_s - (self._own() - self._own_s)
        return max(0.0, others_s / (time.monotonic() - self._started_s))

    def _own(self) -> float:
        found = time.process_time()
        for pid in family(self._root):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found += (int(words[11]) + int(words[12])) / TICKS_PER_S
        return found


def busy_s() -> float:
    """Seconds of all processors that were spent on programs since the machine started."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()
    return sum(int(word) for word in words[1:4]) / TICKS_PER_S


class Watch:
    """Usage of a family over time."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: dict[int, list[tuple[float, Usage]]] = defaultdict(list)

    def look(self, now_s: float) -> None:
        """Note what everybody uses now."""
        for usage in usage_of(self._root):
            self._seen[usage.pid].append((now_s, usage))

    def trends(self, warm_up_s: float) -> list[dict[str, Any]]:
        """Growth of each process that was there after the warm-up, the largest first."""
        rows = []
        for pid, points in self._seen.items():
            late = [(at_s, usage) for at_s, usage in points if at_s >= warm_up_s]
            if len(late) < 3:
                continue
            times = [at_s / 60 for at_s, _ in late]
            slope = statistics.linear_regression(times, [usage.resident_bytes / 2**20 for _, usage in late]).slope
            rows.append(
                {
                    "pid": pid,
                    "name": late[-1][1].name,
                    "resident_mib_first": late[0][1].resident_bytes / 2**20,
                    "resident_mib_last": late[-1][1].resident_bytes / 2**20,
                    "resident_mib_per_minute": slope,
                    "handles_first": late[0][1].num_handles,
                    "handles_last": late[-1][1].num_handles,
                    "handles_most": max(usage.num_handles for _, usage in late),
                }
            )
        return sorted(rows, key=lambda row: -row["resident_mib_last"])
