"""What a worker counts reaches the driver whole, however seldom either of them is heard."""

from typing import Any

from ray.exceptions import GetTimeoutError

from jobs.board import Board, Messenger, Numbers


def numbers(step: int) -> Numbers:
    return Numbers(step, num_steps=9, loss=1.0 / step, num_tokens=10 * step, wait_s=0.25, compute_s=0.5)


def test_a_driver_that_asks_seldom_hears_of_every_token() -> None:
    board = Board()
    for step in (1, 2, 3):
        board.tell((), numbers(step))
    assert board.ask(is_stopping=False).numbers == Numbers(3, 9, 1.0 / 3, num_tokens=60, wait_s=0.75, compute_s=1.5)
    assert board.ask(is_stopping=False).numbers is None


class Slow:
    """A board that gives no answer."""

    @property
    def tell(self) -> Any:
        raise GetTimeoutError


def test_what_could_not_be_told_is_told_with_what_came_later() -> None:
    messenger = Messenger(Slow(), "")
    messenger.show(numbers(1))
    messenger._send()
    messenger.show(numbers(2))
    messenger._send()
    assert messenger._numbers == Numbers(2, 9, 0.5, num_tokens=30, wait_s=0.5, compute_s=1.0)
