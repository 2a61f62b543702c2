"""Being asked to stop, as work sees it."""

from typing import Protocol


class Stop(Protocol):
    """Whether somebody wants the work to stop."""

    @property
    def is_set(self) -> bool:
        """Somebody asked."""
        ...


class StoppedEarly(Exception):
    """The work was asked to stop and has kept what it had; doing it again goes on from there. No failure."""
