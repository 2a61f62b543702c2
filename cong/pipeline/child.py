"""`python -m cong.pipeline.child FOLDER`: one task in a process of its own. Started by `Subprocess` alone."""

import sys

import torch

from cong.errors import CongError
from cong.pipeline.executors import die_with_parent, folder_argument
from cong.pipeline.stopping import StoppedEarly
from cong.pipeline.task import Task
from cong.pipeline.work import perform
from cong.telemetry import configure_logging
from cong.train.stopping import STOPPED_EXIT_CODE, StopRequest
from cong.wording import told_by_the_machine


def main(arguments: list[str]) -> int:
    """Do the task; returns the exit code."""
    configure_logging("INFO")
    die_with_parent()
    try:
        with told_by_the_machine(), StopRequest() as stop:
            task = Task.load(folder_argument(arguments))
            if task.config.num_threads:
                torch.set_num_threads(task.config.num_threads)
            perform(task, stop)
    except StoppedEarly:
        return STOPPED_EXIT_CODE
    except CongError as error:
        print(f"{arguments[-1] if arguments else 'child'}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
