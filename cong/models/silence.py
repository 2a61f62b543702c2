"""Keeps transformers and DeepSpeed from printing bars and advice: what matters of it is checked and said by us."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers


@contextmanager
def silence() -> Iterator[None]:
    """Errors only, no progress bars and no deprecation warnings, restored afterwards."""
    theirs: Any = transformers.utils.logging  # untyped
    verbosity = theirs.get_verbosity()
    had_bars = theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    # Saving imports DeepSpeed where it is installed, and that tells standard output which device it finds.
    deepspeed = logging.getLogger("DeepSpeed")
    deepspeed.addFilter(_is_error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        deepspeed.removeFilter(_is_error)
        theirs.set_verbosity(verbosity)
        if had_bars:
            theirs.enable_progress_bar()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
