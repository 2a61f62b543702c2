"""What may come in, and when to come again."""

import pytest

from cong.errors import InvalidRequest, Overloaded
from cong.service.admission import Admission


def test_the_time_to_come_again_follows_the_present_rate() -> None:
    now, num_running = 0.0, 4
    admission = Admission(10, 100, lambda: num_running, lambda: now)
    admission.enter("a", 9)
    for _ in range(5):
        now += 2.0
        admission.finish(1)
        admission.enter("a", 1)
    assert (admission.num_open, admission.num_waiting) == (9, 5)
    with pytest.raises(Overloaded) as caught:
        admission.enter("a", 9)
    # 4 are too many, and 5 went out in the 8 seconds since the first of them did.
    assert caught.value.retry_after_s == pytest.approx(4 * 8 / 5)
    now += 100.0
    with pytest.raises(Overloaded) as caught:
        admission.enter("a", 9)
    assert caught.value.retry_after_s == 1.0, "nothing is known of the present rate"
    with pytest.raises(InvalidRequest, match="11 samples are asked for; 10 may wait"):
        admission.enter("a", 11)


def test_free_seats_are_filled_before_anybody_waits() -> None:
    num_seats = 6
    admission = Admission(4, 100, lambda: num_seats)
    for _ in range(10):
        admission.enter("a", 1)
    assert (admission.num_open, admission.num_waiting) == (10, 4)
    with pytest.raises(Overloaded, match="4 samples wait, 1 more are asked for, and 4 may"):
        admission.enter("a", 1)
    num_seats = 3  # memory holds no more than these
    admission.finish(3)
    assert admission.num_waiting == 4
    with pytest.raises(Overloaded):
        admission.enter("a", 1)


def test_what_was_refused_leaves_nothing_behind() -> None:
    admission = Admission(4, 2, lambda: 0)
    for _ in range(3):
        with pytest.raises((Overloaded, InvalidRequest)):
            admission.enter("a", 5)
    admission.enter("a", 2)
    admission.enter("a", 2)
    with pytest.raises(Overloaded, match="2 requests of this key"):
        admission.enter("a", 0)
    admission.finish(4)
    admission.leave("a")
    admission.leave("a")
    assert (admission.num_open, admission.num_calls, admission.num_waiting) == (0, 0, 0)
