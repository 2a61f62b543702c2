"""What decides the product of a stage, as a flat record of names and values, and what changed between two of them."""

import math
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from cong.config import RunConfig, TrainConfig
from cong.config.pipeline import StageTraining
from cong.config.stream import SampleFilter
from cong.errors import ConfigError
from cong.evaluation.judges.opening import open_judges
from cong.pipeline.given import chat_template_of
from cong.pipeline.stage import Kind, Product, Stage
from cong.schemas import SamplingParameters, content_key
from cong.train.origins import method_of
from cong.train.recipe import MAY_CHANGE, make_recipe

VERSIONS: Mapping[Kind, int] = {"train": 1, "sample": 1, "import": 1, "evaluate": 1, "sweep": 1, "report": 2}
"""Raised where a kind of work makes something else from the same inputs and settings."""

Recipe = Mapping[str, Any]

WHOLE = SampleFilter(finish_reasons=("stop",))
"""A sample that a limit has cut off would not teach how to end."""

_INPUT, _CANDIDATES = "input.", "candidates"


def own_settings(config: RunConfig, stage: Stage) -> Any:
    """The section of the configuration that is the stage's own."""
    return reduce(getattr, stage.section.split("."), config) if stage.section else None


def train_settings(config: RunConfig, stage: Stage) -> TrainConfig:
    """`train` with what the stage has of its own; networks and data are still to be named."""
    train, own = config.train, own_settings(config, stage)
    assert isinstance(own, StageTraining), f"{stage.name}: {stage.section} is no training"
    for name in ("network", "objective", "data", "num_epochs", "max_steps"):
        if getattr(train, name) != TrainConfig.model_fields[name].default:
            raise ConfigError(f"train.{name} is set, and every stage has its own; set it in the section of the stage")
    batches = train.batches
    if own.batch_size is not None:
        batches = batches.model_copy(update={"batch_size": own.batch_size})
    return train.model_copy(
        update={
            "objective": own.objective,
            "num_epochs": own.num_epochs,
            "max_steps": own.max_steps,
            "batches": batches,
            "optimizer": train.optimizer.model_copy(update={"learning_rate": own.learning_rate}),
            "schedule": own.schedule or train.schedule,
        }
    )


def require_trainable(config: RunConfig, stage: Stage) -> None:
    """Refuse before anything runs what would end a training when its turn has come."""
    train = train_settings(config, stage)
    try:
        method = method_of(train.objective)
    except ConfigError as error:
        raise ConfigError(f"{stage.section}: {error}") from error
    words = ("samples", "pairs")
    takes_pairs = "samples" not in stage.inputs
    if (method.needs.unit == "pairs") != takes_pairs:
        raise ConfigError(
            f"{stage.section}.objective is {method.name!r}, which is trained on {words[not takes_pairs]}, and "
            f"{stage.name} has {words[takes_pairs]}; give another"
        )
    weak = [name for name in method.needs.frozen if name != "reference" and name not in stage.inputs]
    if takes_pairs and weak:
        raise ConfigError(
            f"{stage.section}.objective is {method.name!r}, which needs log-probs of the {weak[0]!r} network, and "
            f"{stage.name} does not take it; give another"
        )
    judged = train.evaluation.data
    if judged is not None and (judged.kind != "stream") != takes_pairs:
        raise ConfigError(
            f"train.evaluation.data is of kind {judged.kind!r}, and {stage.name} is trained on {words[takes_pairs]}; "
            "set train.evaluation.held_out_share, for which every stage takes of its own"
        )


def recipe_of(stage: Stage, inputs: Mapping[str, Product], config: RunConfig) -> dict[str, Any]:
    """Everything that decides what the stage makes; `inputs` are by role."""
    recipe: dict[str, Any] = {"kind": stage.kind, "version": VERSIONS[stage.kind]}
    recipe |= {f"{_INPUT}{stage.inputs[role]}": product.fingerprint for role, product in inputs.items()}
    settings = {"train": _of_training, "sample": _of_sampling, "evaluate": _of_evaluation, "sweep": _of_sweep}.get(
        stage.kind
    )
    return recipe if settings is None else recipe | dict(settings(stage, inputs, config))


def key_of(recipe: Recipe) -> str:
    """A name for what is made by a recipe."""
    return content_key(dict(recipe))


def _of_training(stage: Stage, inputs: Mapping[str, Product], config: RunConfig) -> Iterator[tuple[str, Any]]:
    train = train_settings(config, stage)
    own = {
        "train.optimizer.learning_rate": f"{stage.section}.learning_rate",
        "train.num_epochs": f"{stage.section}.num_epochs",
        "train.max_steps": f"{stage.section}.max_steps",
    }
    for name, value in make_recipe(train, {}).items():
        if name.startswith((*MAY_CHANGE, "train.data.")):
            continue
        yield own.get(name, name.replace("train.objective", f"{stage.section}.objective")), value
    if "samples" in inputs:
        read = config.stream.read
        yield "stream.read.filter", read.filter.model_dump(mode="json")
        yield "stream.read.shuffle_rows", read.shuffle_rows
        yield "stream.read.shuffle_seed", read.shuffle_seed if read.shuffle_rows else 0
        # Only where they take something away: whatever was made without them keeps its name.
        if read.max_records:
            yield "stream.read.max_records", read.max_records
        if not read.is_deduplicated:
            yield "stream.read.is_deduplicated", False
        planned = planned_examples(stage, inputs, config)
        if planned is not None:
            # The learning rate depends on the number of steps, which following has to plan before all is drawn.
            yield "planned steps", math.ceil(planned / train.batches.batch_size)
    if "aligned" in inputs:
        yield "models.dtype", config.models.dtype


def planned_examples(stage: Stage, inputs: Mapping[str, Product], config: RunConfig) -> int | None:
    """Samples that a stage which may follow a stream plans its steps for; None where it cannot follow.

    None too where it does not follow, and only reading tells how many pass its filter.
    """
    train, read = train_settings(config, stage), config.stream.read
    facts = inputs["samples"].facts if "samples" in inputs else {}
    if train.num_epochs > 1 or train.evaluation.held_out_share or "num_expected" not in facts:
        return None
    if not config.pipeline.overlaps and read.filter not in (SampleFilter(), WHOLE):
        return None
    planned = int(facts["num_expected" if config.pipeline.overlaps else "num_whole"])
    return min(planned, read.max_records or planned)


def _of_sampling(stage: Stage, inputs: Mapping[str, Product], config: RunConfig) -> Iterator[tuple[str, Any]]:
    parameters = own_settings(config, stage)
    assert isinstance(parameters, SamplingParameters), f"{stage.name}: {stage.section} is no sampling"
    for name, value in parameters.model_dump(mode="json").items():
        if name != "weights" or parameters.alpha is None:
            yield f"{stage.section}.{name}", value
    if parameters.alpha is not None:
        yield f"{stage.section}.alpha", round(parameters.alpha, 12)
    yield "pipeline.num_samples", config.pipeline.num_samples
    yield "models.dtype", config.models.dtype
    yield "models.chat_template", chat_template_of(config.models)


def _of_evaluation(stage: Stage, inputs: Mapping[str, Product], config: RunConfig) -> Iterator[tuple[str, Any]]:
    settings = config.evaluation
    yield _CANDIDATES, [role for role in inputs if role not in ("aligned", "base", "prompts")]
    for judge in open_judges(settings, judging_models(inputs, config), config.engine, frozenset()):
        yield f"judge {judge.name}", judge.fingerprint
    kept = settings.model_dump(mode="json", exclude={"prompts", "judges", "answers_stream", "candidates"})
    for name, value in kept.items():
        yield f"evaluation.{name}", value
    yield "models.dtype", config.models.dtype


def _of_sweep(stage: Stage, inputs: Mapping[str, Product], config: RunConfig) -> Iterator[tuple[str, Any]]:
    yield "pipeline.alphas", list(config.pipeline.alphas)
    for name, value in config.sampling.model_dump(mode="json", exclude={"weights"}).items():
        yield f"sampling.{name}", value
    yield "evaluation.num_prompts", config.evaluation.num_prompts
    for judge in open_judges(config.evaluation, judging_models(inputs, config), config.engine, frozenset()):
        yield f"judge {judge.name}", judge.fingerprint
    yield "models.dtype", config.models.dtype
    yield "models.chat_template", chat_template_of(config.models)


def judging_models(inputs: Mapping[str, Product], config: RunConfig) -> Any:
    """`models` with the pipeline's weak pair: what a judge takes that names none."""
    pair = {role: inputs[role].network for role in ("aligned", "base")}
    return config.models.model_copy(update={**pair})


def changes(before: Recipe, now: Recipe) -> list[str]:
    """What differs, one phrase each; settings before inputs."""
    phrases = []
    names = sorted({*before, *now}, key=lambda name: (name.startswith(_INPUT), name))
    for name in names:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name.startswith(_INPUT):
            what = name.removeprefix(_INPUT)
            phrases.append(f"{what} is new" if old is None else f"{what} is gone" if new is None else f"another {what}")
        elif name == _CANDIDATES:
            phrases.append("other candidates")
        elif name.startswith("judge "):
            phrases.append(f"{name} is {'new' if old is None else 'gone' if new is None else 'another'}")
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            phrases += [f"{name}.{phrase}" for phrase in changes(old, new)]
        else:
            phrases.append(f"{name} {_shown(old)} → {_shown(new)}")
    return phrases


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
