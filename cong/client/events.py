"""A stream of events out of bytes, and what of it is new to somebody who has heard its beginning before."""

from cong.errors import BadReply, StreamCut
from cong.wire import EndEvent, SampleEvent, TokenEvent

MAX_LINE_BYTES = 256 << 20

_Place = tuple[int, int]
"""Index of the prompt and of its sample."""


class Lines:
    """Bytes to whole lines. Only a line feed ends one: JSON may hold every other separator of Unicode."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._num_bytes = 0

    def push(self, chunk: bytes) -> list[bytes]:
        """Lines that are complete now, empty ones left out."""
        *complete, rest = chunk.split(b"\n")
        lines = []
        for piece in complete:
            lines.append(b"".join([*self._parts, piece]))
            self._parts, self._num_bytes = [], 0
        self._parts.append(rest)
        self._num_bytes += len(rest)
        if self._num_bytes > MAX_LINE_BYTES:
            raise BadReply(f"a line of the stream has more than {MAX_LINE_BYTES} bytes")
        return [line for line in lines if line.strip()]


class Heard:
    """What has been handed on, so that a stream that is asked for again continues where it was cut."""

    def __init__(self, *, remembers: bool) -> None:
        self._remembers = remembers
        self._tokens: dict[_Place, list[int]] = {}
        self._samples: set[_Place] = set()
        self._num_repeated: dict[_Place, int] = {}
        self.num_events = 0
        self.num_samples = 0
        """Samples of this connection, repeated ones included."""

    def begin(self) -> None:
        """A new connection starts from the beginning."""
        self._num_repeated = {}
        self.num_samples = 0

    def is_new(self, event: TokenEvent | SampleEvent | EndEvent) -> bool:
        """Whether the event has to be handed on; raises where it contradicts what was handed on before."""
        if isinstance(event, SampleEvent):
            self.num_samples += 1
        is_new = not self._remembers or isinstance(event, EndEvent) or self._is_unheard(event)
        self.num_events += is_new
        return is_new

    def _is_unheard(self, event: TokenEvent | SampleEvent) -> bool:
        if isinstance(event, SampleEvent):
            record = event.sample.record
            place = (event.prompt_index, record.sample_index)
            tokens = self._tokens.pop(place, [])
            shared = min(len(tokens), len(record.completion_token_ids))
            self._require_same(tokens[:shared] == list(record.completion_token_ids[:shared]))
            is_new = place not in self._samples
            self._samples.add(place)
            return is_new
        place = (event.prompt_index, event.sample_index)
        if place in self._samples:
            return False
        tokens = self._tokens.setdefault(place, [])
        number = self._num_repeated.get(place, 0)
        self._num_repeated[place] = number + 1
        if number < len(tokens):
            self._require_same(tokens[number] == event.token_id)
            return False
        tokens.append(event.token_id)
        return True

    def _require_same(self, is_same: bool) -> None:
        if not is_same:
            raise StreamCut(
                "the stream was cut, and came out differently when it was asked for again: the service has changed "
                "meanwhile; throw away what came and start anew"
            )
