"""Log lines as text or JSON, on standard error.

Library modules only call `logging.getLogger(__name__)`; a program calls `configure_logging` once.
"""

import json as json_encoding
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

# What every log record carries; anything else on a record was given by the caller through `extra`.
_STANDARD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, then what was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = record.stack_info
        for name, value in record.__dict__.items():
            # An extra field cannot take the place of one of ours, and what Ray notes for itself is none.
            if name not in _STANDARD_ATTRIBUTES and name not in entry and not name.startswith("_"):
                entry[name] = value
        return json_encoding.dumps(_finite(entry), ensure_ascii=False, default=str, allow_nan=False)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever standard error is at that moment: a live bar replaces it, to keep lines above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure_logging(level: str = "INFO", *, json: bool = False) -> None:
    """Send the log lines of the whole process to standard error; the last call counts."""
    known = logging.getLevelNamesMapping()
    assert level.upper() in known, f"unknown log level {level!r}; known: {', '.join(known)}"
    handler = _StderrHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if json else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    for former in [one for one in root.handlers if isinstance(one, _StderrHandler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells which fonts it finds


def _finite(value: object) -> object:
    """The same value with NaN and infinities as strings: JSON has no spelling for them, and readers refuse the line."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
