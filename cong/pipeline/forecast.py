"""What a stage will have to do, at most: amounts, and hours on an accelerator where one is named.

Pure arithmetic on the configuration and on what is given; knows nothing of what is done already.
"""

import math
from pathlib import Path

from cong.config import RunConfig
from cong.config.models import NetworkConfig
from cong.config.train import DataSettings
from cong.estimate import SamplingWork, TrainingWork, estimate_sampling, estimate_training, machines
from cong.pipeline.board import Board
from cong.pipeline.recipe import own_settings, train_settings
from cong.pipeline.stage import Product, Stage
from cong.schemas import Prompt

_CHARS_PER_TOKEN = 4.0
"""Of English text."""
_LEAST_HOURS = 0.01


def forecast(board: Board, stage: Stage) -> str:
    """The amount of work in words."""
    if stage.kind == "sample":
        return _sampling(board, stage)
    if stage.kind == "train":
        return _training(board, stage)
    if stage.kind == "evaluate":
        return _evaluation(board, stage)
    return ""


def _sampling(board: Board, stage: Stage) -> str:
    pipeline, parameters = board.config.pipeline, own_settings(board.config, stage)
    prompts = board.given.prompt_set.prompts
    amount = f"{len(prompts) * pipeline.num_samples:,} samples of at most {parameters.max_tokens:,} tokens"
    if not pipeline.accelerator:
        return amount
    roles = ("strong", "aligned", "base")
    networks = {role: _origin(board, stage.inputs[role]) for role in roles if role in stage.inputs}
    models = board.config.models.model_copy(update={role: networks.get(role, NetworkConfig()) for role in roles})
    config = board.config.model_copy(update={"models": models, "sampling": parameters})
    work = SamplingWork(len(prompts), pipeline.num_samples, _prompt_tokens(prompts))
    estimate = estimate_sampling(config, work, machines(pipeline.accelerator, pipeline.num_devices))
    return f"{amount}; {_hours(estimate.hours, board.config)}"


def _training(board: Board, stage: Stage) -> str:
    train = train_settings(board.config, stage)
    num_examples = _num_examples(board, stage)
    if num_examples is None:
        return "a number of steps that the examples decide"
    num_steps = train.num_epochs * math.ceil(num_examples / train.batches.batch_size)
    num_steps = min(num_steps, train.max_steps) if train.max_steps else num_steps
    amount = f"{num_steps:,} steps of {train.batches.batch_size} at most"
    if not board.config.pipeline.accelerator:
        return amount
    # Of pairs and single samples only the kind counts here.
    data = DataSettings(kind="stream" if "samples" in stage.inputs else "joined")
    network = _origin(board, stage.inputs["network"])
    own = board.config.model_copy(update={"train": train.model_copy(update={"data": data, "network": network})})
    prompt_tokens = _prompt_tokens(board.given.prompt_set.prompts)
    room = train.batches.max_example_tokens - prompt_tokens
    work = TrainingWork(num_examples, prompt_tokens, min(float(board.config.sampling.max_tokens), max(room, 1.0)))
    estimate = estimate_training(own, work, machines(board.config.pipeline.accelerator, _num_devices(board.config)))
    return f"{amount}; {_hours(estimate.hours, board.config)}"


def _num_devices(config: RunConfig) -> int:
    """One process trains on one device."""
    return 1 if config.train.backend == "torch" else config.pipeline.num_devices


def _evaluation(board: Board, stage: Stage) -> str:
    settings = board.config.evaluation
    num_candidates = len(stage.inputs) - 3
    num_sets = sum(settings.num_samples if one > 0.0 else 1 for one in settings.temperatures)
    count = f"{settings.num_prompts:,}" if settings.num_prompts else "all"
    return f"{num_candidates} candidates, {num_sets} answers each to {count} held-out prompts"


def _num_examples(board: Board, stage: Stage) -> int | None:
    """Of one epoch, at most; None where only reading them tells."""
    pipeline = board.config.pipeline
    source = stage.inputs.get("samples", stage.inputs.get("pairs", ""))
    if source == "preferences":
        return _num_lines(Path(pipeline.preferences))
    if source == "gold-samples":
        return None if pipeline.gold_answers is None else _num_lines(pipeline.gold_answers)
    return len(board.given.prompt_set.prompts) * pipeline.num_samples


def _num_lines(path: Path) -> int | None:
    if path.suffix not in (".jsonl", ".ndjson"):
        return None
    with path.open("rb") as file:
        return sum(bool(line.strip()) for line in file)


def _origin(board: Board, name: str) -> NetworkConfig:
    """The given network that a product was, or will be, trained from: it has the same size."""
    while name in board.makers:
        name = board.makers[name].inputs["network"]
    product: Product = board.given[name]
    assert product.network is not None, f"{name} is no network"
    return product.network


def _prompt_tokens(prompts: tuple[Prompt, ...]) -> float:
    return sum(map(_length, prompts)) / len(prompts)


def _length(prompt: Prompt) -> float:
    if prompt.token_ids:
        return float(len(prompt.token_ids))
    text = prompt.text or "".join(message.content for message in prompt.messages)
    return max(1.0, len(text) / _CHARS_PER_TOKEN)


def _hours(hours: float, config: RunConfig) -> str:
    on = f"{config.pipeline.num_devices} {config.pipeline.accelerator}"
    return f"at most {hours:,.2f} h on {on}" if hours >= _LEAST_HOURS else f"under {_LEAST_HOURS} h on {on}"
