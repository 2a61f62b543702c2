"""Tokens to text while they are drawn: whole characters only, and stop strings wherever token boundaries fall."""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"


class TextStream:
    """The text of a growing completion. `decode` turns ids into text."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        self._anchor = 0
        """First id that is decoded again: what stands before it no longer changes what comes."""
        self._read = 0
        """First id whose text has not been taken yet."""
        self._num_shown = 0
        self._num_unstoppable = 0
        """Characters in which no stop string may begin."""
        self.text = ""
        """Everything decoded so far, cut at a stop string."""
        self.is_stopped = False

    def push(self, token_id: int, *, can_stop: bool = True) -> str:
        """Take one token; returns the text that is certain now and has not been returned before."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._anchor : self._read])
        now = self._decode(self._ids[self._anchor :])
        if len(now) > len(before) and not now.endswith(_REPLACEMENT):
            overlap = len(self.text) - max(map(len, self._stop), default=0)
            self.text += now[len(before) :]
            self._anchor, self._read = self._read, len(self._ids)
            if can_stop:
                self._look_for_stop(max(self._num_unstoppable, overlap))
            else:
                self._num_unstoppable = len(self.text)
        return self._take(self._num_safe())

    def flush(self) -> str:
        """The end of the text, incomplete characters included."""
        if not self.is_stopped:
            self.text += self._decode(self._ids[self._anchor :])[
                len(self._decode(self._ids[self._anchor : self._read])) :
            ]
        return self._take(len(self.text))

    def _look_for_stop(self, start: int) -> None:
        found = [place for place in (self.text.find(stop, start) for stop in self._stop) if place >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.is_stopped = True

    def _num_safe(self) -> int:
        """Characters that cannot become part of a stop string."""
        if self.is_stopped:
            return len(self.text)
        held = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self.text)), held, -1):
                if self.text.endswith(stop[:length]):
                    held = length
                    break
        return len(self.text) - held

    def _take(self, end: int) -> str:
        piece = self.text[self._num_shown : end]
        self._num_shown = max(self._num_shown, end)
        return piece
