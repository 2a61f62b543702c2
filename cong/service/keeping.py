"""Samples on their way into the stream, told on their caller's ticket once they are kept. Knows no engine."""

import asyncio
import logging

from cong.errors import CongError, StreamError
from cong.schemas import SampleRecord
from cong.service.archive import Archive
from cong.service.metrics import Meter
from cong.service.switchboard import Ticket
from cong.wire import StoreLevel

log = logging.getLogger(__name__)


class Keeping:
    """What is being stored."""

    def __init__(self, archive: Archive, meter: Meter, quiet: asyncio.Event) -> None:
        """`quiet` is set whenever something has been stored."""
        self._archive = archive
        self._meter = meter
        self._quiet = quiet
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def store(self, ticket: Ticket, number: int, record: SampleRecord, level: StoreLevel) -> None:
        """Put a sample on the ticket once it is kept. It is kept even if the caller leaves meanwhile."""
        task = asyncio.get_running_loop().create_task(self._keep(ticket, number, record, level))
        self._tasks.add(task)
        task.add_done_callback(self._note)

    async def wait(self, timeout_s: float) -> None:
        """Until everything is stored, or the time is over."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def _keep(self, ticket: Ticket, number: int, record: SampleRecord, level: StoreLevel) -> None:
        assert level != "none", "only what was asked to be kept comes here"
        try:
            kept = await self._archive.keep(record, level)
        except (StreamError, OSError, RuntimeError) as error:
            self._meter.count("cong_stream_failures_total")
            log.error("a sample could not be stored: %s", error, extra={"key": record.key})
            ticket.fail(error if isinstance(error, CongError) else StreamError(str(error)))
            return
        self._meter.count("cong_stream_acknowledged_total", 1, kept.sample.stored)
        self._meter.observe("cong_stream_append_seconds", [kept.seconds])
        if kept.sample.is_duplicate:
            self._meter.count("cong_duplicates_total")
        ticket.put(number, kept.sample)

    def _note(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._quiet.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("storing a sample failed unexpectedly", exc_info=task.exception())
