"""What could have been drawn at each token of a sample: the head set under every network and under the contrast.

Computed anew from the whole text by a plain forward pass, apart from the engine that drew it. Legend: N tokens of the
sample or of a part of it, V tokens of the vocabulary, H tokens that are shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cong.decoding import distribution, stack_rules
from cong.models import NetworkSet, token_texts
from cong.schemas import SampleRecord

_TOKENS_AT_ONCE = 64
"""Rows of the vocabulary's width that exist in float32 at a time."""


@dataclass(frozen=True)
class Choice:
    """A token that could be drawn, and its log-probabilities."""

    text: str
    logprobs: tuple[float, ...]
    """Under each network at temperature 1."""
    mixed: float
    """Under the distribution that is drawn from."""


@dataclass(frozen=True)
class Step:
    """What was drawn, and from what."""

    drawn: Choice
    favourites: tuple[Choice, ...]
    """Most likely tokens of the distribution that is drawn from, best first; the drawn one may be among them."""
    head_size: int
    is_turned: bool
    """Whether the distribution's favourite is another than the first network's."""


@torch.inference_mode()
def read_steps(networks: NetworkSet, record: SampleRecord, num_favourites: int) -> list[Step]:
    """Every token of a sample that these networks have drawn."""
    ids = record.completion_token_ids
    if not ids:
        return []
    before = len(record.prompt_token_ids) - 1
    sequence_1T = torch.tensor([[*record.prompt_token_ids, *ids]], device=networks.networks[0].device)
    logits = [
        network.model(input_ids=sequence_1T, use_cache=False).logits[0, before:-1, : networks.shared_vocab_size]
        for network in networks.networks
    ]
    steps: list[Step] = []
    for start in range(0, len(ids), _TOKENS_AT_ONCE):
        part = slice(start, min(start + _TOKENS_AT_ONCE, len(ids)))
        steps += _read_part(networks, record, part, [z_NV[part] for z_NV in logits], num_favourites)
    return steps


def _read_part(
    networks: NetworkSet, record: SampleRecord, part: slice, logits: list[Tensor], num_favourites: int
) -> Iterator[Step]:
    num_tokens, vocab_size = logits[0].shape
    device = logits[0].device
    rules = stack_rules([record.parameters] * num_tokens, vocab_size, device)
    # Where nothing is penalised, nobody asks what has been seen.
    is_seen_NV = None if rules.penalty_B is None else _mask(_seen(record, part), vocab_size, device)
    banned_NV = _mask(_banned(networks, record, part), vocab_size, device)
    mixture, logq_NV = distribution(logits, rules, is_seen_NV, banned_NV)
    width = min(num_favourites, vocab_size)
    drawn_N1 = torch.tensor(record.completion_token_ids[part], device=device)[:, None]
    shown_NH = torch.cat([drawn_N1, logq_NV.topk(width, dim=-1).indices], dim=-1)
    mixed_NH = logq_NV.gather(-1, shown_NH).tolist()
    plain_NHK = torch.stack([each_NV.gather(-1, shown_NH) for each_NV in mixture.logprobs_KBV], dim=-1).tolist()
    turned_N = (logq_NV.argmax(-1) != mixture.logprobs_KBV[0].argmax(-1)).tolist()
    head_sizes_N = mixture.head_sizes_B.tolist()
    for row, token_ids in enumerate(shown_NH.tolist()):
        texts = token_texts(networks.tokenizer, token_ids)
        drawn, *favourites = (
            Choice(text, tuple(logprobs), mixed)
            for text, logprobs, mixed in zip(texts, plain_NHK[row], mixed_NH[row], strict=True)
        )
        possible = tuple(choice for choice in favourites if choice.mixed > -torch.inf)
        yield Step(drawn, possible, head_sizes_N[row], turned_N[row])


def _seen(record: SampleRecord, part: slice) -> list[tuple[int, ...]]:
    """Tokens that the repetition penalty acts on, at every token."""
    prompt = () if record.parameters.penalty_rule == "additive" else record.prompt_token_ids
    return [(*prompt, *record.completion_token_ids[:place]) for place in range(part.start, part.stop)]


def _banned(networks: NetworkSet, record: SampleRecord, part: slice) -> list[tuple[int, ...]]:
    """Tokens that would end the sample before its minimum."""
    parameters = record.parameters
    ends = (*(() if parameters.ignore_eos else networks.eos_ids), *parameters.stop_token_ids)
    return [ends if place < parameters.min_tokens else () for place in range(part.start, part.stop)]


def _mask(ids_of_row: list[tuple[int, ...]], vocab_size: int, device: torch.device) -> Tensor:
    mask_NV = torch.zeros(len(ids_of_row), vocab_size, dtype=torch.bool, device=device)
    for row, ids in enumerate(ids_of_row):
        mask_NV[row, list(ids)] = True
    return mask_NV
