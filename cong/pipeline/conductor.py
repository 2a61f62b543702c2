"""Running a pipeline: stage after stage, only what is missing or changed, each complete or absent.

Run again after a kill, it continues; one process at a time. Knows neither how a stage works nor where it runs.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cong.config import RunConfig, dump_config
from cong.errors import ConfigError, PipelineError
from cong.files import open_alone, remove_folder, write_file
from cong.pipeline.board import Board, Standing
from cong.pipeline.executors import Executor, InProcess, Running
from cong.pipeline.marker import BEGUN, MARKER, is_begun, read_begun, write_begun, write_marker
from cong.pipeline.recipe import key_of, planned_examples
from cong.pipeline.report import make_report
from cong.pipeline.stage import Product, Stage
from cong.pipeline.stopping import StoppedEarly
from cong.pipeline.task import Task, task_of
from cong.pipeline.work import expected_stream, product_of
from cong.stream import StreamReader, open_store
from cong.stream.identity import read_identity
from cong.train.stopping import StopRequest

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """How a run of a pipeline ended."""

    ran: list[str] = field(default_factory=list)
    """Stages that were completed, in order."""
    kept: list[str] = field(default_factory=list)
    """Stages that were complete already."""
    is_finished: bool = False
    """False: it was asked to stop; running it again goes on."""
    report: Path | None = None


def run_pipeline(
    config: RunConfig, executor: Executor | None = None, *, stop: StopRequest | None = None, until: str = ""
) -> Outcome:
    """Make everything that the configuration asks for and that is not there; `until`: only what this stage needs, and
    the stage itself."""
    stop = stop or StopRequest()
    with only_one(config.output_dir):
        write_file(config.output_dir / "config.yaml", dump_config(config).encode())
        board = Board(config)
        wanted = board.up_to(until) if until else board.stages
        for line in board.causes([one for one in board.survey() if one.stage in wanted]):
            logger.info("%s", line)
        outcome = Outcome()
        try:
            _Run(board, executor or InProcess(), stop, outcome, wanted).all()
        except StoppedEarly:
            return outcome
        outcome.is_finished = True
        if not until:
            outcome.report = _publish(board)
        return outcome


class _Run:
    def __init__(
        self, board: Board, executor: Executor, stop: StopRequest, outcome: Outcome, wanted: Sequence[Stage]
    ) -> None:
        self._board = board
        self._executor = executor
        self._stop = stop
        self._outcome = outcome
        self._wanted = wanted

    def all(self) -> None:
        board = self._board
        board.survey()
        for stage in self._wanted:
            standing = board.look(stage)
            if standing.state == "done":
                if stage.name not in self._outcome.ran:
                    self._outcome.kept.append(stage.name)
                continue
            assert standing.is_due, f"{stage.name} waits although all before it are done"
            if self._stop.is_set:
                raise StoppedEarly
            if standing.state == "damaged":
                self._set_aside(standing)
            if stage.kind == "report":
                self._report(standing)
            else:
                self._do(standing)
            done = board.look(stage)
            if done.state != "done":
                raise PipelineError(f"{stage.name} has run and is not complete: {done.reason}")

    def _do(self, standing: Standing) -> None:
        """One stage, with those beside it that follow what it writes."""
        stage = standing.stage
        logger.info("%s: %s; %s", stage.name, standing.reason, stage.about)
        task = self._begin(standing, self._board.products(stage))
        beside = self._followers(standing, task) if stage.kind == "sample" else []
        started_s = time.monotonic()
        first = self._executor.start(task, self._stop)
        others = [(one, task_, self._executor.start(task_, self._stop)) for one, task_ in beside]
        try:
            first.wait()
            self._finish(standing, task, started_s)
            self._board.look(stage)
            while others:
                other, other_task, running = others[0]
                running.wait()
                others.pop(0)
                self._finish_follower(other, other_task, started_s)
        except BaseException:
            # Those that follow would wait for more in vain; they have their checkpoints.
            for _, _, running in others:
                self._let_go(running)
            raise

    def _finish_follower(self, standing: Standing, task: Task, started_s: float) -> None:
        """Declare a training complete that has seen all that it would see now."""
        now = self._board.look(standing.stage)
        if now.folder == standing.folder and _has_followed(task):
            self._finish(standing, task, started_s)
        else:
            logger.warning("%s has not followed to the end, and runs once more by itself", standing.stage.name)
            remove_folder(task.folder)

    def _let_go(self, running: Running) -> None:
        if self._stop.is_set:
            try:
                running.wait()
            except (StoppedEarly, PipelineError):
                return
        running.end()

    def _followers(self, standing: Standing, task: Task) -> list[tuple[Standing, Task]]:
        """Trainings of what this stage writes that can begin now."""
        board = self._board
        if not board.config.pipeline.overlaps or standing.recipe is None:
            return []
        stage = standing.stage
        num_expected = len(board.given.prompt_set.prompts) * board.config.pipeline.num_samples
        expected = {stage.product: expected_stream(task, standing.recipe, num_expected)}
        found: list[tuple[Standing, Task]] = []
        for other in board.stages:
            if other.kind != "train" or other.inputs.get("samples") != stage.product or other not in self._wanted:
                continue
            inputs = board.inputs_of(other, expected)
            if inputs is None or planned_examples(other, inputs, board.config) is None:
                continue
            due = board.look(other, expected)
            if not due.is_due or due.state == "damaged":
                continue
            assert due.folder is not None, "only what is due begins"
            beside = [task, *(one for _, one in found), task_of(other, inputs, board.config, due.folder)]
            if not self._executor.can_do_together(beside):
                continue
            logger.info("%s: %s; follows %s", other.name, due.reason, stage.name)
            found.append((due, self._begin(due, inputs)))
        return found

    def _begin(self, standing: Standing, inputs: Mapping[str, Product]) -> Task:
        folder, recipe = standing.folder, standing.recipe
        assert folder is not None, "only what is due begins"
        assert recipe is not None, "only what is due begins"
        task = task_of(standing.stage, inputs, self._board.config, folder)
        streams = {role: _stream_of(inputs[role], task) for role in ("samples", "chosen", "rejected") if role in inputs}
        begun = read_begun(folder)
        if begun is not None and any(begun.get(role) not in (None, name) for role, name in streams.items()):
            logger.warning(
                "%s was begun on a stream that has been made anew since; it begins again", standing.stage.name
            )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not is_begun(folder):
            write_begun(folder, key_of(recipe), recipe, streams)
        return task

    def _finish(self, standing: Standing, task: Task, started_s: float) -> None:
        """Declare a stage complete whose work is done."""
        assert standing.recipe is not None, "only what was begun is finished"
        product, files = product_of(task, standing.recipe)
        seconds = time.monotonic() - started_s
        _mark(standing, product, files, seconds)
        if not task.config.pipeline.keeps_checkpoints:
            remove_folder(task.folder / "checkpoints")
        self._outcome.ran.append(standing.stage.name)
        logger.info("%s: complete after %.1f s", standing.stage.name, seconds)

    def _report(self, standing: Standing) -> None:
        started_s = time.monotonic()
        folder = standing.folder
        assert folder is not None, "everything before the report is done"
        assert standing.recipe is not None, "everything before the report is done"
        folder.mkdir(parents=True, exist_ok=True)
        files = make_report(self._board, folder)
        product = Product("r1-" + key_of(standing.recipe), str(folder / "report.html"))
        _mark(standing, product, files, time.monotonic() - started_s)
        self._outcome.ran.append(standing.stage.name)

    def _set_aside(self, standing: Standing) -> None:
        assert standing.folder is not None, "what is damaged lies somewhere"
        aside = standing.folder.with_name(f".aside-{standing.folder.name}-{time.time_ns()}")
        logger.warning(
            "%s: %s; it is made again, and what is left lies in %s", standing.stage.name, standing.reason, aside
        )
        standing.folder.rename(aside)


def _mark(standing: Standing, product: Product, files: list[str], seconds: float) -> None:
    assert standing.folder is not None, "only what was begun is marked"
    assert standing.recipe is not None, "only what was begun is marked"
    write_marker(standing.folder, standing.stage.name, standing.recipe, product, files, seconds)


def _stream_of(product: Product, task: Task) -> str | None:
    """The name of a stream that a task reads; None where it is not there yet."""
    stream = task.config.stream
    return read_identity(open_store(product.location, stream.storage_options))


def _has_followed(task: Task) -> bool:
    """Whether a training has taken in all that the stream, which is complete now, has for it."""
    summary = task.folder / "summary.json"
    if not summary.exists():
        return False
    read = task.config.stream.read.model_copy(update={"follow": None})
    reader = StreamReader(open_store(task.config.stream.location, task.config.stream.storage_options), read)
    while reader.draw(65_536) is not None:
        pass
    train = task.config.train
    num_steps = math.ceil(reader.cursor.num_records / train.batches.batch_size)
    wanted = min(num_steps, train.max_steps) if train.max_steps else num_steps
    return bool(json.loads(summary.read_text(encoding="utf-8"))["step"] == wanted)


def _publish(board: Board) -> Path:
    """The newest report where people look for it."""
    made = Path(board.product("report").location)
    for path in made.parent.rglob("*"):
        name = path.relative_to(made.parent)
        if path.is_file() and name.name not in (MARKER, BEGUN):
            write_file(board.root / name, path.read_bytes())
    return board.root / made.name


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Refuse a second pipeline in the same folder while the first is alive; the lock goes with its process."""
    try:
        lock = open_alone(folder / "pipeline.lock")
    except BlockingIOError as error:
        raise ConfigError(
            f"another pipeline is at work in {folder}; wait for it, or give another output_dir"
        ) from error
    with lock:
        yield
