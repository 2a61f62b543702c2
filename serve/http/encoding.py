"""Events of `/sample` as lines of JSON, or as server-sent events with the same JSON."""

from cong.service import Batch
from cong.wire import EVENT_STREAM, NDJSON, EndEvent, Usage
from serve.http.errors import Problem


def wants_event_stream(accept: str) -> bool:
    """Whether a caller prefers server-sent events to lines of JSON."""
    kinds = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    return EVENT_STREAM in kinds and NDJSON not in kinds[: kinds.index(EVENT_STREAM)]


class LineEncoder:
    """One event a line; an empty line shows that the server is alive."""

    media_type = NDJSON
    alive = b"\n"
    _before = ""
    _after = "\n"

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def begin(self) -> bytes:
        """Nothing: the first line is the first event."""
        return b""

    def batch(self, batch: Batch) -> bytes:
        """Every event on its line."""
        before, after = self._before, self._after
        return "".join([f"{before}{event.model_dump_json()}{after}" for event in batch]).encode()

    def end(self, num_samples: int, usage: Usage, problem: Problem | None) -> bytes:
        """The last event; without it the answer was cut."""
        event = EndEvent(
            request_id=self._request_id,
            num_samples=num_samples,
            usage=usage,
            error=None if problem is None else problem.body(self._request_id),
        )
        return f"{self._before}{event.model_dump_json()}{self._after}".encode()


class EventEncoder(LineEncoder):
    """The same as server-sent events; a comment shows that the server is alive."""

    media_type = EVENT_STREAM
    alive = b": alive\n\n"
    _before = "data: "
    _after = "\n\n"
