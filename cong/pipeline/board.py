"""Where every stage of a pipeline stands, and why: what is done, what is missing, what has changed.

Looks at files and changes none. Knows no executor.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from cong.config import RunConfig
from cong.errors import ConfigError
from cong.pipeline.book import (
    CEILING,
    CEILING_NAME,
    FLOOR_NAME,
    HELD_OUT,
    STAGES,
    STRONG_BASE,
    SWEEP,
    WEAK_ALIGNED,
    WEAK_BASE,
    methods_of,
    needed,
    through_text,
)
from cong.pipeline.given import Given, candidate_product
from cong.pipeline.marker import Marker, damage_of, is_begun, read_marker
from cong.pipeline.recipe import Recipe, changes, key_of, recipe_of, require_trainable
from cong.pipeline.stage import Product, Stage

State = Literal["done", "continues", "new", "changed", "damaged", "waits"]

_KEY_CHARS = 16
_MOST_NAMES = 3
"""Stages that a reason names."""


@dataclass(frozen=True)
class Standing:
    """One stage at this moment."""

    stage: Stage
    state: State
    reason: str
    recipe: Recipe | None = None
    """None: an input is not there yet, so it is not known what decides about it."""
    folder: Path | None = None
    marker: Marker | None = None
    """Of its product, where it is done."""

    @property
    def is_due(self) -> bool:
        """Whether it can run now."""
        return self.state in ("continues", "new", "changed", "damaged")


class Board:
    """A pipeline: its stages in the order in which they run, and where each stands."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.root = config.output_dir
        self.given = Given(config)
        self.stages = stages_of(config, self.given.names, has_other_tokens=self.given.is_strong_of_other_tokens)
        for stage in self.stages:
            if stage.kind == "train":
                require_trainable(config, stage)
        self._made: dict[str, Product] = {}
        self._recipes: dict[tuple[str, ...], Recipe] = {}
        """By stage and the fingerprints of what it takes: judges' weights are read once."""

    @cached_property
    def makers(self) -> Mapping[str, Stage]:
        """Which stage makes a product."""
        return {stage.product: stage for stage in self.stages}

    def folder_of(self, stage: Stage) -> Path:
        """Where all runs of a stage lie."""
        return self.root / "stages" / stage.name

    def inputs_of(self, stage: Stage, expected: Mapping[str, Product] | None = None) -> dict[str, Product] | None:
        """What a stage takes, by role; None where something is not there and not expected either."""
        found = {}
        for role, name in stage.inputs.items():
            product = self._made.get(name) or (expected or {}).get(name)
            if product is None:
                if name in self.makers or name not in self.given.names:
                    return None
                product = self.given[name]
            found[role] = product
        return found

    def look(self, stage: Stage, expected: Mapping[str, Product] | None = None) -> Standing:
        """Where a stage stands, once those before it have been looked at."""
        inputs = self.inputs_of(stage, expected)
        if inputs is None:
            waiting = [name for name in stage.inputs.values() if name in self.makers and name not in self._made]
            names = list(dict.fromkeys(waiting))
            shown = ", ".join(names) if len(names) <= _MOST_NAMES else f"{len(names)} stages"
            return Standing(stage, "waits", f"for {shown}")
        recipe = self._recipe(stage, inputs)
        folder = self.folder_of(stage) / key_of(recipe)[:_KEY_CHARS]
        marker = read_marker(folder)
        if marker is not None and marker.recipe == recipe:
            damage = damage_of(folder, marker)
            if damage:
                return Standing(stage, "damaged", damage, recipe, folder)
            self._made[stage.product] = marker.product(folder)
            return Standing(stage, "done", f"made {marker.finished_at[:16].replace('T', ' ')}", recipe, folder, marker)
        if is_begun(folder):
            return Standing(stage, "continues", "was begun and is not complete", recipe, folder)
        nearest = min((changes(former.recipe, recipe) for former in self.former(stage)), key=len, default=None)
        if nearest is None:
            return Standing(stage, "new", "has not run yet", recipe, folder)
        return Standing(stage, "changed", ", ".join(nearest), recipe, folder)

    def _recipe(self, stage: Stage, inputs: Mapping[str, Product]) -> Recipe:
        name = (stage.name, *(f"{one.fingerprint} {sorted(one.facts.items())}" for one in inputs.values()))
        if name not in self._recipes:
            self._recipes[name] = recipe_of(stage, inputs, self.config)
        return self._recipes[name]

    def former(self, stage: Stage) -> list[Marker]:
        """The complete runs of a stage, whatever they were made from, newest first."""
        folder = self.folder_of(stage)
        folders = [each for each in folder.iterdir() if each.name[0] != "."] if folder.is_dir() else []
        found = (read_marker(each) for each in folders)
        return sorted((each for each in found if each is not None), key=lambda one: one.finished_at, reverse=True)

    def survey(self) -> list[Standing]:
        """Where every stage stands."""
        self._made.clear()
        return [self.look(stage) for stage in self.stages]

    def products(self, stage: Stage) -> dict[str, Product]:
        """What a stage takes, by role, all of it there."""
        inputs = self.inputs_of(stage)
        assert inputs is not None, f"{stage.name} waits for another stage"
        return inputs

    def product(self, name: str) -> Product:
        """What a stage has made; all before it are done."""
        return self._made[name]

    def up_to(self, name: str) -> list[Stage]:
        """A stage and all that it needs, in the order in which they run."""
        if name not in (names := [stage.name for stage in self.stages]):
            raise ConfigError(f"there is no stage {name!r} in this pipeline; its stages are {', '.join(names)}")
        found, products = [], set[str]()
        for stage in reversed(self.stages):
            if stage.name == name or stage.product in products:
                found.append(stage)
                products |= set(stage.inputs.values())
        return found[::-1]

    def after(self, stage: Stage) -> list[Stage]:
        """The stages that take what this one makes, and those that take what they make."""
        found = {stage.product}
        for other in self.stages:
            if found & set(other.inputs.values()):
                found.add(other.product)
        return [other for other in self.stages if other.product in found and other is not stage]

    def causes(self, standings: list[Standing]) -> Iterator[str]:
        """One line for every stage that has a reason of its own to run: the reason, and what runs with it."""
        for standing in standings:
            if standing.is_due:
                names = [standing.stage.name, *(stage.name for stage in self.after(standing.stage))]
                again = "run again" if standing.state == "changed" else "run"
                runs = f"{', '.join(names)} {again if len(names) > 1 else again.replace('run', 'runs', 1)}"
                yield f"{standing.stage.name}: {standing.reason}, so {runs}"


def stages_of(config: RunConfig, given: frozenset[str], *, has_other_tokens: bool = False) -> list[Stage]:
    """Everything that has to be made for the methods that are asked for, and the judgement of it.

    `given`: names of what the configuration gives. `has_other_tokens`: the strong model's tokenizer is its own.
    """
    methods = methods_of(config.pipeline.methods)
    book = STAGES
    if has_other_tokens:
        wrong = [name for name, method in zip(config.pipeline.methods, methods, strict=True) if method.shares_tokens]
        if wrong:
            raise ConfigError(
                f"pipeline.methods names {wrong[0]!r}, which compares single tokens, and the tokenizers of "
                "models.base and models.strong differ; leave it out"
            )
        book = through_text(STAGES, STRONG_BASE)
    candidates = {FLOOR_NAME: WEAK_ALIGNED}
    for method in methods:
        candidates |= method.candidates
    if config.pipeline.ceiling.source or config.pipeline.gold_answers is not None:
        candidates[CEILING_NAME] = CEILING
    clash = candidates.keys() & config.evaluation.candidates.keys()
    if clash:
        raise ConfigError(f"evaluation.candidates names {min(clash)!r}, which is the pipeline's own; give another name")
    stages = needed(book, candidates.values(), given)
    if HELD_OUT in given:
        stages.append(_evaluation(candidates, config))
        if config.pipeline.alphas:
            stages.append(SWEEP)
    inputs = {stage.product: stage.product for stage in stages}
    return [*stages, Stage("report", "report", "tables, curves and samples of everything above", inputs)]


def _evaluation(candidates: Mapping[str, str], config: RunConfig) -> Stage:
    if not config.evaluation.judges:
        raise ConfigError("evaluation.prompts is set and evaluation.judges is empty; name at least one judge")
    if config.evaluation.misfit is not None:
        named = (config.evaluation.misfit.student, config.evaluation.misfit.weak)
        raise ConfigError(f"evaluation.misfit names {named}, which are not known to be there; leave it out")
    extra = {name: candidate_product(name) for name in config.evaluation.candidates}
    pair = {"aligned": WEAK_ALIGNED, "base": WEAK_BASE}
    inputs = {"prompts": HELD_OUT, **pair, **candidates, **extra}
    return Stage("evaluate", "evaluate", "every model judged on held-out prompts", inputs)
