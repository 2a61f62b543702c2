"""What a worker counts reaches the driver whole, however seldom either of them is heard."""

from typing import Any

from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from jobs.board import Board, Messenger, Numbers


def numbers(step: int) -> Numbers:
    return Numbers(step, num_steps=9, loss=1.0 / step, num_tokens=10 * step, wait_s=0.25, compute_s=0.5)


def test_a_driver_that_asks_seldom_hears_of_every_token() -> None:
    board = Board()
    for step in (1, 2, 3):
        board.tell((), numbers(step))
    assert board.ask(is_stopping=False).numbers == Numbers(3, 9, 1.0 / 3, num_tokens=60, wait_s=0.75, compute_s=1.5)
    assert board.ask(is_stopping=False).numbers is None


class Away:
    """A board that is not reached, or not in time."""

    def __init__(self, error: RayError) -> None:
        self._error = error

    @property
    def tell(self) -> Any:
        raise self._error


def test_what_could_not_be_told_is_told_with_what_came_later() -> None:
    messenger = Messenger(Away(ActorUnavailableError("away", None)), "")
    messenger.show(numbers(1))
    messenger._send()
    messenger.show(numbers(2))
    messenger._send()
    assert messenger._numbers == Numbers(2, 9, 0.5, num_tokens=30, wait_s=0.5, compute_s=1.0)


def test_what_is_under_way_is_not_told_twice() -> None:
    messenger = Messenger(Away(GetTimeoutError()), "")
    messenger.show(numbers(1))
    messenger._send()
    assert messenger._numbers is None
