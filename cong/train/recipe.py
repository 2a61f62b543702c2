"""What must be the same when a run goes on from a checkpoint, and what may change.

A recipe is flat: dotted names to plain values. Contents are compared, not places: a moved folder is the same network.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cong.config.train import TrainConfig
from cong.errors import CheckpointError

Recipe = Mapping[str, Any]

MAY_CHANGE = (
    # Watching and keeping.
    "train.checkpoints.",
    "train.logging.",
    "train.evaluation.every_steps",
    "train.evaluation.max_examples",
    "train.evaluation.data",
    # How the same sums are computed: the result stays the same up to rounding.
    "train.batches.max_tokens_per_micro_batch",
    "train.batches.is_packed",
    "train.has_activation_checkpointing",
    "train.is_compiled",
    "train.deepspeed.",
)
"""Names, or beginnings of names, that a resumed run may give other values."""

_STATED_BY_CONTENT = ("train.network.", "train.data.path", "train.data.chosen.location", "train.data.rejected.location")
"""Places; what lies there is part of the recipe under its fingerprint."""


def make_recipe(config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run: its settings, and facts such as fingerprints and the data's identity."""
    settings = dict(_leaves(config.model_dump(mode="json"), "train."))
    kept = {name: value for name, value in settings.items() if not name.startswith(_STATED_BY_CONTENT)}
    return {**kept, **dict(_leaves(facts, ""))}


def require_same(stored: Recipe, present: Recipe, where: str) -> list[str]:
    """Refuse a recipe that would make another run; what has changed and may, as lines for the log."""
    changed = [
        f"{name} was {_shown(stored.get(name))} and is {_shown(present.get(name))}"
        for name in sorted({*stored, *present})
        if stored.get(name) != present.get(name)
    ]
    wrong = [line for line in changed if not line.startswith(MAY_CHANGE)]
    if wrong:
        listed = "\n  ".join(wrong)
        raise CheckpointError(
            f"{where} was made by another recipe:\n  {listed}\nGive these settings their former values, or train into "
            "another output_dir, with another train.checkpoints.upload where there is one"
        )
    return changed


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield (
                f"{prefix}{name}",
                list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value,
            )
