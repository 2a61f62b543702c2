"""Where Ray Train enters a worker.

Ray's controller loads this module too, with the function that it hands on; what training needs is a worker's alone.
"""

from collections.abc import Mapping
from typing import Any

from cong.train.progress import Outcome


def work(given: Mapping[str, Any]) -> Outcome | None:
    """The function that Ray Train runs on every worker."""
    from jobs.workers import train_together

    return train_together(given["task"])
