"""One driver at a time for one run: a claim in its folder, kept alive by a heartbeat, taken over when that stops.

Claims are numbered files; the highest is in force. Making the next number is what the file system lets one driver do
and no other, so two can never hold a run. Clocks of different machines are not compared. Knows no Ray.
"""

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from cong.errors import ConfigError, CongError
from cong.files import make_folder, sync_folder, write_file

logger = logging.getLogger(__name__)

FOLDER = "driver"
_NAME = re.compile(r"claim-(\d{8})\.json")
_POLL_S = 0.2
_BEATS_PER_TAKEOVER = 10


class RunIsTaken(ConfigError):
    """Another driver trains this run."""


class Interrupted(CongError):
    """This process was asked to stop before it was known whether another one trains the run."""


@dataclass(frozen=True)
class Driver:
    """Who trains a run."""

    owner: str
    """Its own name, never used again."""
    machine: str
    """Host, boot and process namespace: process numbers mean the same only where this is the same."""
    host: str
    pid: int
    started: str
    """When the process began, as its machine counts."""
    job: str
    """What the job is called; empty = nobody has submitted it."""
    is_done: bool = False
    """It has let go of the run."""

    @classmethod
    def this(cls, job: str = "") -> Self:
        """This process."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        host = socket.gethostname()
        machine = f"{host} {boot} {os.readlink('/proc/self/ns/pid')}"
        return cls(uuid.uuid4().hex, machine, host, os.getpid(), _started(os.getpid()) or "", job)

    @property
    def is_known_dead(self) -> bool:
        """It has said so, or it ran on this machine and its process is gone."""
        return self.is_done or (self.machine == type(self).this().machine and _started(self.pid) != self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}{f', job {self.job}' if self.job else ''}"


class Claim:
    """A run that this process trains, as a context manager; refused while another process does."""

    def __init__(
        self, root: Path, driver: Driver, takeover_s: float, wants_stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._folder = root / FOLDER
        self._driver = driver
        self._takeover_s = takeover_s
        self._wants_stop = wants_stop
        self._path = self._folder
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self._beat_at_s = 0.0
        self._loss: str | None = None

    @property
    def loss(self) -> str | None:
        """Why this process does not hold the run any more."""
        if self._loss is None and time.monotonic() - self._beat_at_s > self._takeover_s / 2:
            self._loss = f"{self._path} could not be kept alive for {self._takeover_s / 2:g} s"
        return self._loss

    def __enter__(self) -> Self:
        make_folder(self._folder)
        number = 0
        if (found := _in_force(self._folder)) is not None:
            number = found[0]
            self._wait_until_dead(*found)
        self._path = self._folder / f"claim-{number + 1:08d}.json"
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError as error:
            raise RunIsTaken(f"another driver has just begun to train {self._folder.parent}") from error
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(self._driver), file)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self._folder)
        for path in self._folder.glob("claim-*.json"):
            if (match := _NAME.fullmatch(path.name)) and int(match[1]) <= number:
                path.unlink(missing_ok=True)
        self._beat_at_s = time.monotonic()
        self._thread = threading.Thread(target=self._keep_alive, name="claim", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
        if self._loss is None:
            # The file stays, so that the next claim has a number that nobody has had.
            write_file(self._path, json.dumps(asdict(replace(self._driver, is_done=True))).encode())

    def _wait_until_dead(self, number: int, former: Driver | None) -> None:
        """Return once the former driver is known to be dead, or has been silent for long enough."""
        path = self._folder / f"claim-{number:08d}.json"
        if former is not None and former.is_known_dead:
            if not former.is_done:
                logger.warning("taking over from %s, which has ended without a word", former)
            return
        who = str(former) if former is not None else "an unknown process"
        first, until_s = _beat_of(path), time.monotonic() + self._takeover_s
        logger.info("looking for %.0f s whether %s is alive", self._takeover_s, who)
        while time.monotonic() < until_s:
            time.sleep(_POLL_S)
            if self._wants_stop():
                raise Interrupted(f"asked to stop before it was known whether {who} still trains the run")
            found = _in_force(self._folder)
            if found is not None and found[1] is not None and found[1].is_done:
                return
            if found is None or found[0] != number or _beat_of(path) != first:
                raise RunIsTaken(
                    f"{self._folder.parent} is being trained by {who}; nothing was started. Wait for it, stop it, or "
                    "give another output_dir"
                )
        logger.warning("taking over from %s, silent for %.0f s", who, self._takeover_s)

    def _keep_alive(self) -> None:
        while not self._is_over.wait(self._takeover_s / _BEATS_PER_TAKEOVER):
            try:
                found = _in_force(self._folder)
                maker = found[1] if found is not None else None
                if maker is None or maker.owner != self._driver.owner:
                    self._loss = f"{maker or 'another driver'} has taken the run over"
                    return
                os.utime(self._path)
                self._beat_at_s = time.monotonic()
            except OSError as error:
                logger.warning("%s cannot be kept alive: %s", self._path, error)


def _in_force(folder: Path) -> tuple[int, Driver | None] | None:
    """Number and maker of the highest claim; no maker where it is just being written."""
    numbers = sorted(int(match[1]) for name in os.listdir(folder) if (match := _NAME.fullmatch(name)))
    if not numbers:
        return None
    try:
        content: Mapping[str, object] = json.loads((folder / f"claim-{numbers[-1]:08d}.json").read_text("utf-8"))
        return numbers[-1], Driver(**content)  # type: ignore[arg-type]
    except (FileNotFoundError, ValueError, TypeError):
        return numbers[-1], None


def _beat_of(path: Path) -> int | None:
    """Changes with every sign of life; None = the claim is gone."""
    try:
        # Opening is what makes a network file system ask its server again.
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _started(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
