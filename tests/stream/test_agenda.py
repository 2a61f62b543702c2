"""When a writer's thread wakes: exactly when something is due."""

from hypothesis import assume, given
from hypothesis import strategies as st

from cong.config.stream import WriteSettings
from cong.lab.records import synthetic_record
from cong.stream.agenda import Agenda
from cong.stream.buffer import Buffer, Pending
from cong.stream.columns import pack

SETTINGS = WriteSettings(rows_per_segment=2, max_age_s=16.0, acknowledge_s=2.0)
moments = st.integers(0, 40).map(float)


@given(
    num_records=st.integers(1, 2),
    waited_since_s=st.none() | moments,
    journal_retry_at_s=moments,
    segment_retry_at_s=moments,
    is_behind=st.booleans(),
)
def test_the_thread_wakes_when_something_is_due_and_not_before(
    num_records: int,
    waited_since_s: float | None,
    journal_retry_at_s: float,
    segment_retry_at_s: float,
    is_behind: bool,
) -> None:
    buffer = Buffer(SETTINGS)
    for row in range(num_records):
        buffer.add(Pending(pack(synthetic_record(row)), row, since_s=0.0))
    buffer.waited_since_s = waited_since_s
    agenda = Agenda(SETTINGS, buffer)
    agenda.journal_retry_at_s = journal_retry_at_s
    agenda.segment_retry_at_s = segment_retry_at_s

    def is_due(now_s: float) -> bool:
        return agenda.is_seal_due(now_s) or agenda.is_commit_due(now_s, is_behind=is_behind)

    assume(not is_due(0.0))
    pause_s = agenda.pause_s(0.0, is_behind=is_behind)
    assert is_due(pause_s)
    assert not is_due(pause_s - 0.5)


def test_nothing_is_due_where_nothing_waits() -> None:
    agenda = Agenda(SETTINGS, Buffer(SETTINGS))
    agenda.is_forced = True
    assert not agenda.is_seal_due(1e9)
    assert agenda.pause_s(1e9, is_behind=False) == SETTINGS.max_age_s
