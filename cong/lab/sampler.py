"""The reference sampler: K networks, no cache, the whole prefix computed again for every token.

Slow, plain and meant to be obviously right: the oracle for every faster engine. Rows of a batch have prompts of equal
length, so nothing is ever padded. Knows token ids only: no tokenizer, no stop strings, no records.
Legend: B rows still running, T positions, V tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cong.decoding import decode_step, logprobs, stack_rules
from cong.schemas import FinishReason, SamplingParameters


@dataclass(frozen=True)
class ReferenceSample:
    """One completion and what is known of each of its tokens."""

    token_ids: tuple[int, ...]
    """Ends with the end-of-sequence or stop token where one was drawn."""
    logprobs: tuple[tuple[float, ...], ...]
    """Per network, the log-probability of each token at temperature 1."""
    mixture_logprobs: tuple[float, ...]
    head_sizes: tuple[int, ...]
    num_floored: int
    """Head tokens, over all steps, on whose log-probability the floor acted."""
    finish_reason: FinishReason


class _Row:
    """A completion while it grows."""

    def __init__(self, prompt: Sequence[int], parameters: SamplingParameters, sample_index: int) -> None:
        self.prompt = list(prompt)
        self.parameters = parameters
        self.sample_index = sample_index
        self.token_ids: list[int] = []
        self.logprobs: list[list[float]] = []
        self.mixture_logprobs: list[float] = []
        self.head_sizes: list[int] = []
        self.num_floored = 0

    def stop_ids(self, eos_token_ids: Sequence[int]) -> list[int]:
        """Tokens that end this row."""
        eos = [] if self.parameters.ignore_eos else list(eos_token_ids)
        return [*eos, *self.parameters.stop_token_ids]

    def seen_ids(self) -> list[int]:
        """Tokens that this row's repetition penalty acts on."""
        is_prompt_seen = self.parameters.penalty_rule != "additive"
        return (self.prompt if is_prompt_seen else []) + self.token_ids

    def finish_reason(self, eos_token_ids: Sequence[int]) -> FinishReason | None:
        """Why the row is finished, or None."""
        num_tokens = len(self.token_ids)
        if num_tokens > self.parameters.min_tokens and self.token_ids[-1] in self.stop_ids(eos_token_ids):
            return "stop"
        return "length" if num_tokens == self.parameters.max_tokens else None

    def finished(self, reason: FinishReason) -> ReferenceSample:
        return ReferenceSample(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(zip(*self.logprobs, strict=True)),
            mixture_logprobs=tuple(self.mixture_logprobs),
            head_sizes=tuple(self.head_sizes),
            num_floored=self.num_floored,
            finish_reason=reason,
        )


def _last_logits(networks: Sequence[nn.Module], token_ids_BT: Tensor) -> list[Tensor]:
    """Each network's logits of the next token, cut to the width that all share."""
    all_logits = [network(input_ids=token_ids_BT).logits[:, -1] for network in networks]
    width = min(logits_BV.shape[-1] for logits_BV in all_logits)
    return [logits_BV[:, :width] for logits_BV in all_logits]


def _mark(rows_of_ids: Sequence[Sequence[int]], like_BV: Tensor) -> Tensor:
    """True at the given ids of each row."""
    mask_BV = torch.zeros_like(like_BV, dtype=torch.bool)
    for row, ids in enumerate(rows_of_ids):
        mask_BV[row, list(ids)] = True
    return mask_BV


def _draw_next(networks: Sequence[nn.Module], rows: Sequence[_Row], eos_token_ids: Sequence[int]) -> None:
    """Draw the next token of every row; all have the same number of tokens."""
    device = next(networks[0].parameters()).device
    position = len(rows[0].token_ids)
    logits = _last_logits(networks, torch.tensor([row.prompt + row.token_ids for row in rows], device=device))
    is_seen_BV = banned_BV = None
    if any(row.parameters.repetition_penalty != 1.0 for row in rows):
        is_seen_BV = _mark([row.seen_ids() for row in rows], logits[0])
    if any(position < row.parameters.min_tokens for row in rows):
        is_early = [position < row.parameters.min_tokens for row in rows]
        banned = [row.stop_ids(eos_token_ids) if early else [] for row, early in zip(rows, is_early, strict=True)]
        banned_BV = _mark(banned, logits[0])
    step = decode_step(
        logits,
        stack_rules([row.parameters for row in rows], logits[0].shape[-1], device),
        torch.tensor([row.sample_index for row in rows], device=device),
        torch.full((len(rows),), position, device=device),
        is_seen_BV,
        banned_BV,
    )
    columns = zip(
        rows,
        step.token_B.tolist(),
        step.logprobs_BK.tolist(),
        step.mixture_logprob_B.tolist(),
        step.head_size_B.tolist(),
        step.num_floored_B.tolist(),
        strict=True,
    )
    for row, token_id, token_logprobs, mixture_logprob, head_size, num_floored in columns:
        row.token_ids.append(token_id)
        row.logprobs.append(token_logprobs)
        row.mixture_logprobs.append(mixture_logprob)
        row.head_sizes.append(head_size)
        row.num_floored += num_floored


@torch.no_grad()
def reference_sample(
    networks: Sequence[nn.Module],
    prompts: Sequence[Sequence[int]],
    parameters: Sequence[SamplingParameters],
    sample_indices: Sequence[int],
    eos_token_ids: Sequence[int],
) -> list[ReferenceSample]:
    """Sample one completion per prompt from the mixture of K networks.

    Prompts have equal length; parameters and sample index are given per row. A network is any module that maps
    `input_ids` to an object with `logits`, as transformers' causal language models do. Before `min_tokens` the tokens
    that would end a row are not drawn, unless the head set holds nothing else; then they do not end it.
    """
    assert len({len(prompt) for prompt in prompts}) == 1, "prompts of one batch have equal length"
    assert len(prompts) == len(parameters) == len(sample_indices), "one parameter set and one sample index per prompt"
    assert not any(one.stop for one in parameters), "stop strings need a tokenizer; this sampler knows token ids only"
    rows = [_Row(*each) for each in zip(prompts, parameters, sample_indices, strict=True)]
    finished: dict[int, ReferenceSample] = {}
    running = list(range(len(rows)))
    while running:
        _draw_next(networks, [rows[i] for i in running], eos_token_ids)
        for i in running:
            reason = rows[i].finish_reason(eos_token_ids)
            if reason is not None:
                finished[i] = rows[i].finished(reason)
        running = [i for i in running if i not in finished]
    return [finished[i] for i in range(len(rows))]


@torch.no_grad()
def reference_score(
    networks: Sequence[nn.Module], prompt: Sequence[int], completion: Sequence[int]
) -> tuple[tuple[float, ...], ...]:
    """Log-probability of each token of a given completion under each network, as sampling it would record."""
    assert prompt, "nothing predicts the first token of an empty prompt"
    device = next(networks[0].parameters()).device
    token_ids_1T = torch.tensor([[*prompt, *completion]], device=device)
    all_logits = [network(input_ids=token_ids_1T).logits[0] for network in networks]
    width = min(logits_TV.shape[-1] for logits_TV in all_logits)
    scores = []
    for logits_TV in all_logits:
        logprobs_TV = logprobs(logits_TV[len(prompt) - 1 : -1, :width])
        scores.append(tuple(logprobs_TV[i, token_id].item() for i, token_id in enumerate(completion)))
    return tuple(scores)
