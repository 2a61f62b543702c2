"""Keeps transformers from printing bars and advice while it loads: what matters of it is checked and said by us."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers


@contextmanager
def silence() -> Iterator[None]:
    """Errors only, no progress bars and no deprecation warnings, restored afterwards."""
    logging: Any = transformers.utils.logging  # untyped
    verbosity = logging.get_verbosity()
    had_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
