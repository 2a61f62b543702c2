"""A blocking iterator read ahead by a thread of its own, for an event loop. Knows nothing of what it carries."""

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

_LOOK_S = 0.1


class Feed(Generic[T]):
    """Items in order, a bounded number of them ahead; made and used on one event loop."""

    def __init__(self, items: Iterable[T], num_ahead: int) -> None:
        self._items = items
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(num_ahead)
        self._queue: asyncio.Queue[T | _End] = asyncio.Queue()
        self._is_closed = False
        # A daemon: reading may hang on a network, and must not keep the process.
        threading.Thread(target=self._read, name="feed", daemon=True).start()

    async def take(self) -> T | None:
        """The next item; None when there is no more. Raises what reading raised."""
        item = await self._queue.get()
        if isinstance(item, _End):
            self._queue.put_nowait(item)  # for everybody else who waits
            if item.error is not None:
                raise item.error
            return None
        self._room.release()
        return item

    def close(self) -> None:
        """Read no more, and let nobody wait for more."""
        if not self._is_closed:
            self._is_closed = True
            self._queue.put_nowait(_End(None))

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                while not self._room.acquire(timeout=_LOOK_S):
                    if self._is_closed:
                        return
                if self._is_closed:
                    return
                self._put(item)
        except BaseException as caught:  # noqa: BLE001
            # Whatever it is: it is raised again where the items are taken.
            error = caught
        self._put(_End(error))

    def _put(self, item: "T | _End") -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)


class _End:
    """The end of the items, and why, where it was an error."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
