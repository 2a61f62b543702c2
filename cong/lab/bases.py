"""Where the two pretrained models come from: shipped, cached, or made now.

A shipped or cached model is used only if the recipe it was made by is the one in force; otherwise it is made anew, and
that is said.
"""

import logging
from pathlib import Path

from transformers import LlamaForCausalLM

from cong.config.lab import LabConfig
from cong.lab.cache import Cache, Recipe, digest_of_modules, problem_with
from cong.lab.networks import load_network, save_network
from cong.lab.pretraining import Size, new_network, pretrain, section
from cong.lab.trainer import num_steps_of
from cong.telemetry import progress

SIZES: tuple[Size, ...] = ("weak", "strong")
SHIPPED = Path(__file__).parent / "assets"
SHIPPED_SEED = 0

_RECIPE_MODULES = (
    "cong.lab.world",
    "cong.lab.networks",
    "cong.lab.trainer",
    "cong.lab.pretraining",
    "cong.objectives.logprobs",
    "cong.objectives.objective",
    "cong.objectives.responses",
    "cong.objectives.sft",
)

_log = logging.getLogger(__name__)


def base_recipe(config: LabConfig, size: Size) -> Recipe:
    """Everything that decides what the pretrained model of that size is."""
    settings = {"seed": config.seed, **section(config, size).model_dump(mode="json")}
    return Recipe(f"{size}_base", settings, digest_of_modules(_RECIPE_MODULES))


def make_base(config: LabConfig, size: Size, folder: Path) -> None:
    """Pretrain the model of that size and write it to a folder."""
    network = new_network(config, size)
    settings = section(config, size).pretraining
    num_steps = num_steps_of(settings.num_documents, settings)
    with progress(f"pretraining the {size} model, seed {config.seed}", num_steps, unit="steps") as bar:
        for step in pretrain(network, config, size):
            bar.advance(loss=step.loss)
    save_network(network, folder)


def get_base(config: LabConfig, size: Size, cache: Cache) -> LlamaForCausalLM:
    """The pretrained model of that size: shipped, cached, or made now."""
    recipe = base_recipe(config, size)
    problem = problem_with(SHIPPED / recipe.kind, recipe)
    if problem is None:
        return load_network(SHIPPED / recipe.kind)
    if config.seed == SHIPPED_SEED and not cache.has(recipe):
        _log.warning("the shipped %s is not used: %s; it is made anew", recipe.kind, problem)
    return load_network(cache.get(recipe, lambda folder: make_base(config, size, folder)))
