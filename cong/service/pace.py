"""How often token streams are sent something: the more of them, the more tokens at a time. Knows numbers only.

A write costs about the same however many tokens it brings, and through a proxy it costs more than drawing one.
"""


class Pace:
    """What all token streams of a process share."""

    def __init__(self, writes_per_s: float, longest_s: float) -> None:
        self._writes_per_s = writes_per_s
        self._longest_s = longest_s
        self.num_streams = 0
        """Token streams that are open."""

    def bound(self, writes_per_s: float, longest_s: float) -> None:
        """Other bounds from now on."""
        self._writes_per_s = writes_per_s
        self._longest_s = longest_s

    @property
    def gap_s(self) -> float:
        """Seconds between two writes of one stream, so that all together keep to their number."""
        return min(self.num_streams / self._writes_per_s, self._longest_s)
