"""How far a stage is that was begun and is not complete, from what it has left so far. Changes nothing."""

from pathlib import Path

from cong.pipeline.attempt import FAILURES, read_lines
from cong.pipeline.board import Board, Standing
from cong.pipeline.task import STREAM
from cong.stream import list_stream, open_store


def progress_of(board: Board, standing: Standing) -> str:
    """In words; empty where nothing is known."""
    folder = standing.folder
    if folder is None or standing.state == "done":
        return ""
    if standing.stage.kind == "sample":
        wanted = len(board.given.prompt_set.prompts) * board.config.pipeline.num_samples
        return _sampled(folder, wanted)
    if standing.stage.kind == "train":
        return _trained(folder)
    if standing.stage.kind == "evaluate":
        judgements = sum(len(read_lines(path)) for path in sorted((folder / "judgements").glob("*.jsonl")))
        return f"{judgements:,} judgements"
    return ""


def _sampled(folder: Path, wanted: int) -> str:
    if not (folder / STREAM).is_dir():
        return ""
    num_rows = list_stream(open_store(str(folder / STREAM))).num_rows
    num_failed = len(read_lines(folder / FAILURES))
    failed = f", {num_failed:,} given up" if num_failed else ""
    return f"{num_rows:,} of {wanted:,} samples ({num_rows / wanted:.0%}){failed}"


def _trained(folder: Path) -> str:
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "progress" in line]
    if not lines:
        return ""
    last = lines[-1]
    loss = f", loss {last['loss']:.3f}" if last.get("loss") is not None else ""
    return f"step {last['step']:,} ({last['progress']:.0%}){loss}"
