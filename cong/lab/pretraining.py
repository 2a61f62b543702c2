"""How the two models before anything is taught to them are made: fresh weights and a corpus, both from a seed.

With the modules it stands on, this is the recipe of what is shipped and cached. Knows nothing of files.
"""

import random
from collections.abc import Iterator
from typing import Literal

import torch
from transformers import LlamaForCausalLM

from cong.config.lab import LabConfig, StrongSettings, WeakSettings
from cong.lab.networks import build_network, prompt_ids, response_ids
from cong.lab.trainer import Example, TrainingStep, train
from cong.lab.world import derived_seed, draw_document, generator
from cong.objectives import SFT

Size = Literal["weak", "strong"]


def section(config: LabConfig, size: Size) -> WeakSettings | StrongSettings:
    """The settings of the model of that size."""
    return config.weak if size == "weak" else config.strong


def new_network(config: LabConfig, size: Size) -> LlamaForCausalLM:
    """A network of that size with the seed's first weights."""
    shape = section(config, size).network
    weights = torch.Generator().manual_seed(derived_seed(f"{size} weights", config.seed))
    return build_network(shape.hidden_size, shape.num_layers, shape.num_heads, shape.mlp_size, weights)


def draw_corpus(config: LabConfig, size: Size) -> list[Example]:
    """The documents that the model of that size is trained on."""
    rng = generator(f"{size} corpus", config.seed)
    documents = [draw_document(rng) for _ in range(section(config, size).pretraining.num_documents)]
    return [Example(prompt_ids(each.prompt), (response_ids(each.response),)) for each in documents]


def pretrain(network: LlamaForCausalLM, config: LabConfig, size: Size) -> Iterator[TrainingStep]:
    """Train a new network in place, yielding after every step."""
    examples = draw_corpus(config, size)
    rng = random.Random(derived_seed(f"{size} corpus order", config.seed))
    yield from train(network, SFT(), examples, section(config, size).pretraining, rng)
