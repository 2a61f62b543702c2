"""A process that ends with the one that started it, on Linux. Imports little: programs call it as they begin."""

import ctypes

_LIBC = ctypes.CDLL(None, use_errno=True)
_PDEATHSIG = 1


def end_with_parent(number: int) -> None:
    """Let the kernel send this process a signal once the one that started it has died, whatever program it becomes.

    Loads nothing: right after a fork another thread of the parent may hold any lock.
    """
    if _LIBC.prctl(_PDEATHSIG, number, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel does not tell of the end of the process that started this one")
