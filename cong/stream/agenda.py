"""When a writer's thread has something to do, from moments that are handed in. Knows no threads and no files."""

from cong.config.stream import WriteSettings
from cong.stream.buffer import Buffer


class Agenda:
    """When records go into the journal and into a segment."""

    def __init__(self, settings: WriteSettings, buffer: Buffer) -> None:
        self._settings = settings
        self._buffer = buffer
        self.is_forced = False
        """Whatever there is goes into segments at once."""
        self.journal_retry_at_s = 0.0
        """After a failure: when to write the journal again."""
        self.segment_retry_at_s = 0.0
        """After a failure: when to try again a segment that nobody waits for."""

    def is_commit_due(self, now_s: float, *, is_behind: bool) -> bool:
        """Whether to write the journal, which `is_behind` the buffer or is not."""
        return is_behind and now_s >= self.journal_retry_at_s

    def is_seal_due(self, now_s: float) -> bool:
        """Whether to make a segment."""
        oldest_s, since_s = self._buffer.oldest_s(), self._buffer.waited_since_s
        if oldest_s is None:
            return False
        is_waited_for = since_s is not None and now_s >= since_s + self._settings.acknowledge_s
        is_ripe = self._buffer.is_segment_full() or now_s >= oldest_s + self._settings.max_age_s
        return self.is_forced or is_waited_for or (is_ripe and now_s >= self.segment_retry_at_s)

    def pause_s(self, now_s: float, *, is_behind: bool) -> float:
        """Until when nothing can become due by itself."""
        oldest_s, since_s = self._buffer.oldest_s(), self._buffer.waited_since_s
        if oldest_s is None:
            return self._settings.max_age_s
        ripe_s = now_s if self._buffer.is_segment_full() else oldest_s + self._settings.max_age_s
        due = [max(ripe_s, self.segment_retry_at_s)]
        if is_behind:
            due.append(self.journal_retry_at_s)
        if since_s is not None:
            due.append(since_s + self._settings.acknowledge_s)
        return max(0.0, min(due) - now_s)
