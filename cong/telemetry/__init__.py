"""What a person or a log collector sees while something runs: progress and log lines, all on standard error.

Knows neither what is counted nor what the log lines are about.
"""

from cong.telemetry.bars import Progress, progress, track
from cong.telemetry.logs import JsonFormatter, configure_logging

__all__ = ["JsonFormatter", "Progress", "configure_logging", "progress", "track"]
