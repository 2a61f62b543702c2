"""The whole method as keyed stages: align, sample, imitate, sample, prefer, judge, report.

A stage is a value, and what it makes is known by all that it was made from: run again, only what is missing or changed
is made. Knows no Ray, no HTTP server and no lab.
"""

from cong.pipeline.board import Board, Standing
from cong.pipeline.book import METHODS, STAGES, Method
from cong.pipeline.conductor import Outcome, run_pipeline
from cong.pipeline.executors import Executor, InProcess, Running, Subprocess
from cong.pipeline.stage import Product, Stage
from cong.pipeline.task import Task

__all__ = [
    "METHODS",
    "STAGES",
    "Board",
    "Executor",
    "InProcess",
    "Method",
    "Outcome",
    "Product",
    "Running",
    "Stage",
    "Standing",
    "Subprocess",
    "Task",
    "run_pipeline",
]
