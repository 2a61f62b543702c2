"""What each kind of work does with its task, in this process, and what it has made once it is done.

Doing a task again goes on from what is there. Knows no order of stages.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping

from cong.config import RunConfig
from cong.config.models import NetworkConfig
from cong.errors import ConfigError, PipelineError
from cong.evaluation import Evaluation, evaluate, evaluation_page, sweep, write_evaluation
from cong.files import digest_of, write_file
from cong.pipeline.attempt import FAILURES, SESSIONS, read_lines
from cong.pipeline.given import network_product
from cong.pipeline.importing import import_texts
from cong.pipeline.recipe import Recipe, key_of
from cong.pipeline.sampling import sample_here
from cong.pipeline.stage import Kind, Product
from cong.pipeline.stopping import Stop, StoppedEarly
from cong.pipeline.task import MODEL, STREAM, Task
from cong.report import Samples
from cong.schemas import content_key
from cong.stream import StreamReader, open_store
from cong.train.run import train
from cong.train.stopping import StopRequest

SIDE_BY_SIDE, SWEEP = "samples.json", "sweep.json"


def perform(task: Task, stop: StopRequest) -> None:
    """Do the work of a task; raises `StoppedEarly` where it was asked to stop before its end."""
    _WORK[task.kind](task, stop)


def _train(task: Task, stop: StopRequest) -> None:
    if task.config.train.backend != "torch":
        raise ConfigError(
            f"{task.stage}: train.backend is {task.config.train.backend!r}, which needs several processes; submit "
            "jobs.pipeline to a cluster, or set train.backend=torch"
        )
    outcome = train(task.config, stop=stop)
    if not outcome.is_finished:
        raise StoppedEarly


def _sample(task: Task, stop: Stop) -> None:
    if not task.config.sampling_job.url:
        sample_here(task.config, stop, task.stage)
        return
    # Only here, because it brings the client, and a pipeline on this machine needs none of its extra.
    from cong.pipeline.asking import sample_there

    sample_there(task.config, stop, task.stage)


def _import(task: Task, stop: Stop) -> None:
    import_texts(task.config, task.texts, stop, task.stage)


def _evaluate(task: Task, stop: Stop) -> None:
    found = evaluate(task.config)
    write_evaluation(found, task.config)
    write_file(task.folder / SIDE_BY_SIDE, (json.dumps(_side_by_side(found, task.config)) + "\n").encode())


def _sweep(task: Task, stop: Stop) -> None:
    points = [point.model_dump(mode="json") for point in sweep(task.config, task.config.pipeline.alphas)]
    write_file(task.folder / SWEEP, (json.dumps(points, indent=1) + "\n").encode())


def _side_by_side(found: Evaluation, config: RunConfig) -> list[object]:
    """The answers that the evaluation's page shows, token by token, as plain data."""
    page = evaluation_page(found.result, found.sets, found.judged, config)
    blocks = (block for section in page.sections for block in section.blocks)
    return [dataclasses.asdict(block) for block in blocks if isinstance(block, Samples)]


_WORK: Mapping[Kind, Callable[[Task, StopRequest], None]] = {
    "train": _train,
    "sample": _sample,
    "import": _import,
    "evaluate": _evaluate,
    "sweep": _sweep,
}


# What was made.


def product_of(task: Task, recipe: Recipe) -> tuple[Product, list[str]]:
    """What a task that is done has made, and its files; refuses what is not whole."""
    return _PRODUCTS[task.kind](task, recipe)


def _network(task: Task, recipe: Recipe) -> tuple[Product, list[str]]:
    folder = task.folder
    if not (folder / MODEL).is_dir() or not (folder / "summary.json").exists():
        raise PipelineError(f"{task.stage}: {folder} holds no finished network; run the pipeline again")
    made = network_product(NetworkConfig(source=str(folder / MODEL)), task.config.models, task.stage)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    facts = {**made.facts, "num_steps": int(summary["step"]), **{f"count {k}": v for k, v in summary["counts"].items()}}
    product = Product(made.fingerprint, made.location, made.network, facts)
    return product, [MODEL, "summary.json", "metrics.jsonl"]


def _stream(task: Task, recipe: Recipe) -> tuple[Product, list[str]]:
    failures = read_lines(task.folder / FAILURES)
    config = task.config
    store = open_store(config.stream.location)
    num_records, num_whole, num_tokens = 0, 0, 0
    for table, _ in StreamReader(store).tables(4096, ("finish_reason", "num_tokens")):
        num_records += table.num_rows
        num_whole += sum(reason == "stop" for reason in table.column("finish_reason").to_pylist())
        num_tokens += sum(table.column("num_tokens").to_pylist())
    num_expected = num_records + sum("prompt_id" in failure for failure in failures)
    share = len(failures) / max(1, num_records + len(failures))
    if share > config.pipeline.max_failed_share or not num_records:
        first = failures[0]
        raise PipelineError(
            f"{task.stage}: {len(failures)} of {num_records + len(failures)} samples were given up, the first because "
            f"of {first['error']}: {first['reason']}. All are named in {task.folder / FAILURES}, and the next run "
            f"tries them again; pipeline.max_failed_share is {config.pipeline.max_failed_share:g}"
        )
    facts: dict[str, int | float | str] = {
        "num_records": num_records,
        "num_whole": num_whole,
        "num_expected": num_expected,
        "num_tokens": num_tokens,
        "num_failed": len(failures),
    }
    product = Product(stream_fingerprint(recipe, failures), str(task.folder / STREAM), facts=facts)
    return product, [STREAM, FAILURES, SESSIONS]


def stream_fingerprint(recipe: Recipe, failures: list[dict[str, object]]) -> str:
    """Of a stream: what its samples' keys are made of, and which are missing; known before anything is drawn."""
    missing = sorted([str(one.get("prompt_id", one.get("where"))), str(one.get("sample_index"))] for one in failures)
    return "s1-" + content_key([key_of(recipe), missing])


def expected_stream(task: Task, recipe: Recipe, num_expected: int) -> Product:
    """The stream that a sampling task will have made if nothing fails."""
    facts = {"num_expected": num_expected, "num_whole": num_expected, "num_records": num_expected}
    return Product(stream_fingerprint(recipe, []), str(task.folder / STREAM), facts=facts)


def _evaluation(task: Task, recipe: Recipe) -> tuple[Product, list[str]]:
    files = ["evaluation.json", "judged.jsonl", SIDE_BY_SIDE, "report.html", "report.md"]
    fingerprint = "e1-" + content_key([digest_of(task.folder / name) for name in files[:3]])
    return Product(fingerprint, str(task.folder / files[0])), files


def _swept(task: Task, recipe: Recipe) -> tuple[Product, list[str]]:
    path = task.folder / SWEEP
    return Product("w1-" + content_key([digest_of(path)]), str(path)), [SWEEP]


_PRODUCTS: Mapping[Kind, Callable[[Task, Recipe], tuple[Product, list[str]]]] = {
    "train": _network,
    "sample": _stream,
    "import": _stream,
    "evaluate": _evaluation,
    "sweep": _swept,
}
