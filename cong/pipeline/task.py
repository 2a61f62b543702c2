"""A stage made ready to run: a folder, and a whole configuration for the program that does this kind of work.

The same configuration by hand, with `cong train` or `cong evaluate`, does the same. Knows no executor.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cong.config import RunConfig
from cong.config.evaluation import CandidateConfig, EvaluationConfig, GapSettings
from cong.config.models import ModelsConfig, NetworkConfig
from cong.config.stream import FollowSettings, ReadSettings, SampleFilter
from cong.config.train import CheckpointSettings, DataSettings, LoggingSettings, PairSide
from cong.errors import CongError
from cong.files import write_file
from cong.pipeline.book import CEILING_NAME, FLOOR_NAME, WEAK_BASE, display_name
from cong.pipeline.given import with_prompts
from cong.pipeline.recipe import WHOLE, own_settings, planned_examples, train_settings
from cong.pipeline.stage import Kind, Product, Stage

STREAM, MODEL = "stream", "model"
_TASK = "task.json"


@dataclass(frozen=True)
class Task:
    """Work that any executor can do."""

    stage: str
    kind: Kind
    folder: Path
    """What it makes lies here, and what it goes on from."""
    config: RunConfig
    texts: str = ""
    """Of an import: the stream or file whose texts are taken."""
    runs_beside: bool = False
    """It follows what another task is writing."""

    def save(self) -> None:
        """Write it down for another process."""
        content = {
            "stage": self.stage,
            "kind": self.kind,
            "texts": self.texts,
            "runs_beside": self.runs_beside,
            "config": self.config.model_dump(mode="json"),
        }
        write_file(self.folder / _TASK, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "Task":
        """What `save` wrote."""
        try:
            content = json.loads((folder / _TASK).read_text(encoding="utf-8"))
            config = RunConfig.model_validate(content.pop("config"))
            return cls(folder=folder, config=config, **content)
        except (OSError, ValueError, TypeError) as error:
            raise CongError(f"{folder / _TASK} does not describe a task: {error}") from error


def task_of(stage: Stage, inputs: Mapping[str, Product], config: RunConfig, folder: Path) -> Task:
    """The work of a stage whose inputs are there, or on their way where it follows them."""
    config = config.model_copy(update={"output_dir": folder})
    if stage.kind == "train":
        return Task(stage.name, stage.kind, folder, _training(stage, inputs, config))
    if stage.kind == "sample":
        return Task(stage.name, stage.kind, folder, _sampling(stage, inputs, config, folder))
    if stage.kind == "import":
        own = config.model_copy(
            update={"models": _models(config, strong=inputs["tokenizer"]), "stream": _at(config, folder / STREAM)}
        )
        return Task(stage.name, stage.kind, folder, own, texts=inputs["texts"].location)
    if stage.kind == "sweep":
        return Task(stage.name, stage.kind, folder, _sweep(inputs, config, folder))
    assert stage.kind == "evaluate", f"{stage.name}: {stage.kind} is no work of its own"
    return Task(stage.name, stage.kind, folder, _evaluation(inputs, config, folder))


def _models(config: RunConfig, **roles: Product) -> ModelsConfig:
    """`models` with these networks and no others."""
    networks = {name: roles[name].network if name in roles else NetworkConfig() for name in _ROLES}
    return config.models.model_copy(update=networks)


_ROLES = ("strong", "aligned", "base")


def _at(config: RunConfig, location: Path | str) -> object:
    """`stream` at a place of its own; its index is cached there."""
    return config.stream.model_copy(update={"location": str(location), "cache_dir": ""})


def _training(stage: Stage, inputs: Mapping[str, Product], config: RunConfig) -> RunConfig:
    train = train_settings(config, stage).model_copy(update={"network": inputs["network"].network})
    read, location = config.stream.read, ""
    if "samples" in inputs:
        location = inputs["samples"].location
        read = _read(stage, inputs, config)
        data = DataSettings(kind="stream")
    elif "pairs" in inputs:
        data = DataSettings(kind="pairs", path=inputs["pairs"].location)
    else:
        chosen = PairSide(location=inputs["chosen"].location, filter=WHOLE)
        data = DataSettings.model_validate(
            {
                "kind": "joined",
                "chosen": chosen.model_dump(),
                "rejected": {"location": inputs["rejected"].location, "filter": SampleFilter().model_dump()},
            }
        )
    weak = {role: inputs[role] for role in ("aligned", "base") if role in inputs}
    stream = config.stream.model_copy(update={"location": location, "read": read, "cache_dir": ""})
    return config.model_copy(
        update={
            "train": train.model_copy(
                update={
                    "data": data,
                    "logging": _named(train.logging, stage, config),
                    "checkpoints": _of_stage(train.checkpoints, stage, config),
                }
            ),
            "models": _models(config, **weak),
            "stream": stream,
        }
    )


def _of_stage(checkpoints: CheckpointSettings, stage: Stage, config: RunConfig) -> CheckpointSettings:
    """Copies of checkpoints lie apart as the stages do: one run goes on from what it finds."""
    if not checkpoints.upload:
        return checkpoints
    return checkpoints.model_copy(
        update={"upload": f"{checkpoints.upload.rstrip('/')}/{stage.name}/{config.output_dir.name}"}
    )


def _named(logging: LoggingSettings, stage: Stage, config: RunConfig) -> LoggingSettings:
    """Trackers join runs of one name, so each stage has its own.

    The card calls the network as tables do, with what it came from: its folder is named by a recipe.
    """
    pipeline = config.output_dir.parent.parent.parent
    run = logging.run_name or pipeline.resolve().name
    update = {"run_name": f"{run}-{stage.name}-{config.output_dir.name}"}
    if not logging.card_title:
        is_weak = stage.inputs["network"] == WEAK_BASE or stage.name.startswith("self-")
        source = (config.models.base if is_weak else config.models.strong).source
        folder = Path(source).expanduser()
        start = folder.resolve().name if folder.exists() else source
        update["card_title"] = f"{display_name(stage.product)} ({start})"
    return logging.model_copy(update=update)


def _read(stage: Stage, inputs: Mapping[str, Product], config: RunConfig) -> ReadSettings:
    read = config.stream.read
    whole = {"finish_reasons": WHOLE.finish_reasons}
    passing = read.filter if read.filter.finish_reasons else read.filter.model_copy(update=whole)
    update: dict[str, object] = {"filter": passing, "follow": None}
    planned = planned_examples(stage, inputs, config)
    if config.pipeline.overlaps and planned is not None:
        update |= {"follow": read.follow or FollowSettings(), "max_records": planned}
    return read.model_copy(update=update)


def _sampling(stage: Stage, inputs: Mapping[str, Product], config: RunConfig, folder: Path) -> RunConfig:
    config = with_prompts(config)
    # Only the contrastive pair is what a service holds.
    is_served = bool(config.pipeline.url) and {"aligned", "base"} <= inputs.keys()
    job = config.sampling_job.model_copy(update={"url": config.pipeline.url if is_served else ""})
    networks = {role: product for role, product in inputs.items() if role in _ROLES}
    return config.model_copy(
        update={
            "sampling": own_settings(config, stage),
            "sampling_job": job,
            "models": _models(config, **networks),
            "stream": _at(config, folder / STREAM),
        }
    )


def _sweep(inputs: Mapping[str, Product], config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(
        update={
            "evaluation": config.evaluation.model_copy(update={"answers_stream": _answers(config, folder)}),
            "models": _models(config, aligned=inputs["aligned"], base=inputs["base"]),
        }
    )


def _answers(config: RunConfig, folder: Path) -> str:
    """The stream of all answers to held-out prompts, whichever stage has drawn them."""
    return config.evaluation.answers_stream or str(folder.parent.parent.parent / "answers")


def _evaluation(inputs: Mapping[str, Product], config: RunConfig, folder: Path) -> RunConfig:
    given = config.evaluation.candidates
    candidates: dict[str, CandidateConfig] = {}
    for name in (role for role in inputs if role not in ("aligned", "base", "prompts")):
        network = inputs[name].network
        candidates[name] = given[name] if network is None else CandidateConfig.model_validate(network.model_dump())
    settings = config.evaluation.model_dump() | {
        "candidates": {name: one.model_dump() for name, one in candidates.items()},
        "answers_stream": _answers(config, folder),
    }
    if settings["gap"] is None and {FLOOR_NAME, CEILING_NAME} <= candidates.keys():
        settings["gap"] = GapSettings(floor=FLOOR_NAME, ceiling=CEILING_NAME).model_dump()
    return config.model_copy(
        update={
            "evaluation": EvaluationConfig.model_validate(settings),
            "models": _models(config, aligned=inputs["aligned"], base=inputs["base"]),
        }
    )
