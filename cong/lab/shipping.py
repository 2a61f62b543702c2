"""The pretrained models that come with the package: how they are made, and whether they are still what is made.

On one machine with one number of threads a rebuild is equal bit for bit. Other processors, thread counts and versions
of torch round differently, and thousands of steps magnify that: there the rebuilt model has to be as good, not equal.
"""

import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from cong.config.lab import LabConfig
from cong.errors import ConfigError
from cong.lab.answers import ask
from cong.lab.bases import SHIPPED, SHIPPED_SEED, SIZES, base_recipe, make_base
from cong.lab.cache import problem_with, seal
from cong.lab.networks import load_network, prompt_ids, response_ids
from cong.lab.pretraining import Size
from cong.lab.stages import held_out_prompts, plain_parameters
from cong.lab.trainer import Example, response_logprobs
from cong.lab.world import draw_document

REWARD_TOLERANCE = 0.03
"""Three standard errors of the mean over 1,000 prompts."""
LOSS_TOLERANCE_NATS = 0.02
"""Per token, on documents that neither model has seen."""
NUM_CHECK_DOCUMENTS = 2000


@dataclass(frozen=True)
class Comparison:
    """A shipped model beside the one that its recipe makes now."""

    size: Size
    problem: str | None
    """What is wrong with the shipped files themselves; None = nothing."""
    largest_weight_difference: float
    rewards: tuple[float, float]
    """Shipped, rebuilt: gold reward of plain samples on the test prompts."""
    losses: tuple[float, float]
    """Shipped, rebuilt: negative log-likelihood per token on new documents, in nats."""

    @property
    def is_identical(self) -> bool:
        """Bit for bit."""
        return self.largest_weight_difference == 0.0

    @property
    def is_within_tolerance(self) -> bool:
        """Sound files, and a rebuilt model that is as good as the shipped one."""
        is_reward_close = abs(self.rewards[0] - self.rewards[1]) <= REWARD_TOLERANCE
        is_loss_close = abs(self.losses[0] - self.losses[1]) <= LOSS_TOLERANCE_NATS
        return self.problem is None and is_reward_close and is_loss_close


def _require_shipped_seed(config: LabConfig) -> None:
    if config.seed != SHIPPED_SEED:
        raise ConfigError(
            f"lab.seed is {config.seed}, and the shipped models are those of seed {SHIPPED_SEED}; leave it out"
        )


def build_shipped(config: LabConfig, into: Path = SHIPPED) -> Iterator[Path]:
    """Make every shipped model from the seed and put it in place, yielding each folder."""
    _require_shipped_seed(config)
    into.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        recipe = base_recipe(config, size)
        with tempfile.TemporaryDirectory(dir=into, prefix=".") as made:
            make_base(config, size, Path(made) / "new")
            seal(Path(made) / "new", recipe)
            folder = into / recipe.kind
            if folder.exists():
                folder.rename(Path(made) / "old")
            shutil.move(Path(made) / "new", folder)
        yield folder


def _mean_loss(network: nn.Module, examples: list[Example]) -> float:
    logprobs = response_logprobs(network, examples, "float32")
    return -torch.cat(logprobs).mean().item()


def check_shipped(config: LabConfig, shipped: Path = SHIPPED) -> Iterator[Comparison]:
    """Make every shipped model again, elsewhere, and compare."""
    _require_shipped_seed(config)
    rng = random.Random("documents to check by")
    documents = [draw_document(rng) for _ in range(NUM_CHECK_DOCUMENTS)]
    examples = [Example(prompt_ids(each.prompt), (response_ids(each.response),)) for each in documents]
    prompts, plain = held_out_prompts(config), plain_parameters(config)
    for size in SIZES:
        recipe = base_recipe(config, size)
        with tempfile.TemporaryDirectory() as folder:
            make_base(config, size, Path(folder))
            networks = load_network(shipped / recipe.kind), load_network(Path(folder))
        weights = zip(networks[0].parameters(), networks[1].parameters(), strict=True)
        answers = [ask([network], prompts, plain, "evaluation", config.seed) for network in networks]
        rewards = [fmean(answer.reward for answer in of_one) for of_one in answers]
        yield Comparison(
            size=size,
            problem=problem_with(shipped / recipe.kind, recipe),
            largest_weight_difference=max((a - b).abs().max().item() for a, b in weights),
            rewards=(rewards[0], rewards[1]),
            losses=(_mean_loss(networks[0], examples), _mean_loss(networks[1], examples)),
        )
