"""The rows of a step that draw a token, and the rules they draw by, kept from step to step while the rows stay.

Legend: K networks, B drawing rows, V tokens.
"""

import math
from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import torch
from torch import Tensor

from cong.decoding import DrawRule, Rules, decode_step, logprobs, stack_rules, uniforms
from cong.engine.cpu.drawing import draw_on_cpu
from cong.engine.gpu.heads import HEAD_WIDTH, draw_on_gpu, find_heads_on_gpu
from cong.engine.protocol import TokenRecord
from cong.engine.rule_numbers import RuleNumbers, number_rules
from cong.engine.scheduler import Chunk
from cong.engine.sequence import Sequence
from cong.engine.transfer import Arriving, to_device


class Drawn:
    """One token for each of many rows, drawn on the device and on its way from it."""

    def __init__(self, record_BR: Tensor, max_head: int) -> None:
        """A row: the token, the size of its head set, its log-probability in the mixture and under each network."""
        self.token_B = record_BR[:, 0].long()
        """Ids on the device; of rows that are not said, any."""
        self._max_head = max_head
        self._record_BR = Arriving(record_BR)

    def numbers(self) -> Tensor:
        """All rows on the host, float64 [B, 3 + K]."""
        return self._record_BR.get()

    def tokens(self) -> list[TokenRecord] | None:
        """All rows; None where a head set was larger than what its kernel can look at."""
        record_BR = self.numbers()
        return None if bool((record_BR[:, 1] > self._max_head).any()) else token_records(record_BR)


@dataclass
class _Rows:
    """One batch of drawing sequences and what stays the same while it does."""

    sequences: list[Sequence]
    where_B: list[list[int]]
    """Their seeds and sample indices."""
    has_minimum: bool
    """Whether any of them must not end at once."""
    head_log_lambda_B: Tensor
    is_seen_BV: Tensor | None
    numbers: RuleNumbers | None
    """None = the kernels cannot draw for these rows: they have a temperature for a single network, or, on a GPU, a head
    set that is too large."""
    rules: Rules | None = None
    """Made on first use."""


class Drawer:
    """Draws one token for each of many sequences."""

    def __init__(
        self, vocab_size: int, device: torch.device, *, finds_heads: bool = False, has_kernel: bool = False
    ) -> None:
        """`finds_heads` says that kernels of Triton are there, `has_kernel` that those of the CPU are."""
        self.vocab_size = vocab_size
        self.device = device
        self._finds_heads = finds_heads
        self._has_kernel = has_kernel
        self._rows: _Rows | None = None

    @torch.inference_mode()
    def draw(self, sequences: list[Sequence], logits: Ordered[Tensor]) -> Drawn:
        """The next token of each sequence, given every network's [B, V] logits."""
        if not sequences:
            return Drawn(torch.empty(0, 3), self.vocab_size)
        rows = self._rows_for(sequences)
        real = tuple(logits_BV[:, : self.vocab_size] for logits_BV in logits)
        banned_BV = self._banned(sequences) if rows.has_minimum else None
        record_BR = self._draw_from_heads(rows, real, banned_BV)
        if record_BR is None:
            record_BR = self._draw_from_all(rows, real, banned_BV)
        drawn = Drawn(record_BR, HEAD_WIDTH if self._finds_heads and rows.numbers is not None else self.vocab_size)
        if rows.is_seen_BV is not None:
            rows.is_seen_BV.scatter_(1, drawn.token_B[:, None], True)
        return drawn

    def draw_from_all(self, sequences: list[Sequence], logits: Ordered[Tensor]) -> Drawn:
        """The same by the plain rule, after `draw` could not say all tokens; so for these rows from now on."""
        rows = self._rows_for(sequences)
        rows.numbers = None
        if rows.is_seen_BV is not None:  # with tokens that are none
            rows.is_seen_BV = self._mark(map(_seen, sequences), len(sequences))
        return self.draw(sequences, logits)

    def forget(self) -> None:
        """Look at the rows anew: of some, tokens were drawn that their sequences never got."""
        self._rows = None

    def _draw_from_heads(self, rows: _Rows, logits: tuple[Tensor, ...], banned_BV: Tensor | None) -> Tensor | None:
        """By kernels that look at head sets alone; None where they cannot."""
        if rows.numbers is None:
            return None
        if self._has_kernel:
            record_BR = draw_on_cpu(
                logits, rows.head_log_lambda_B, rows.numbers, self._coordinates(rows), rows.is_seen_BV, banned_BV
            )
            is_told = bool((record_BR[:, 1] > 0).all())  # unless logits are not numbers
            return record_BR if is_told else None
        heads = find_heads_on_gpu(logits, rows.head_log_lambda_B)
        uniform_B = to_device(uniforms(*self._coordinates(rows)), self.device)
        return draw_on_gpu(heads, rows.numbers, uniform_B, self.vocab_size, rows.is_seen_BV, banned_BV)

    def _draw_from_all(self, rows: _Rows, logits: tuple[Tensor, ...], banned_BV: Tensor | None) -> Tensor:
        """In plain torch, on the whole vocabulary."""
        if rows.rules is None:
            rows.rules = stack_rules([sequence.rule for sequence in rows.sequences], self.vocab_size, self.device)
        _, sample_index_B, position_B = to_device(self._coordinates(rows), self.device)
        step = decode_step(logits, rows.rules, sample_index_B, position_B, rows.is_seen_BV, banned_BV)
        columns = (step.token_B, step.head_size_B, step.mixture_logprob_B, *step.logprobs_BK.unbind(-1))
        return torch.stack([column.double() for column in columns], dim=-1)

    def _coordinates(self, rows: _Rows) -> Tensor:
        """What each row's random number depends on: seed, sample index and position [3, B], on the host."""
        return torch.tensor([*rows.where_B, [sequence.num_drawn for sequence in rows.sequences]])

    @torch.inference_mode()
    def score(self, chunks: Ordered[Chunk], logits: Ordered[Tensor]) -> list[list[TokenRecord]]:
        """Log-probabilities of the tokens that each scored chunk is followed by, given their rows' logits."""
        targets = [chunk.sequence.targets[chunk.scored] for chunk in chunks if chunk.sequence.targets]
        token_ids = [token_id for tokens in targets for token_id in tokens]
        if not token_ids:
            return [[] for _ in targets]
        token_R1 = torch.tensor(token_ids, device=self.device)[:, None]
        columns = [logprobs(z_RV[:, : self.vocab_size]).gather(1, token_R1) for z_RV in logits]
        values = iter(torch.cat(columns, dim=1).tolist())
        return [[TokenRecord(token_id, tuple(next(values))) for token_id in tokens] for tokens in targets]

    def _rows_for(self, sequences: list[Sequence]) -> _Rows:
        if self._rows is None or self._rows.sequences != sequences:
            rules = [sequence.rule for sequence in sequences]
            has_penalty = any(rule.repetition_penalty != 1.0 for rule in rules)
            self._rows = _Rows(
                sequences=sequences,
                where_B=[[rule.seed for rule in rules], [sequence.sample_index for sequence in sequences]],
                has_minimum=any(rule.min_tokens > 0 for rule in rules),
                head_log_lambda_B=to_device(
                    torch.tensor([math.log(rule.head_lambda) if rule.head_lambda else -math.inf for rule in rules]),
                    self.device,
                ),
                is_seen_BV=self._mark(map(_seen, sequences), len(sequences)) if has_penalty else None,
                numbers=self._numbers_of(rules),
            )
        return self._rows

    def _numbers_of(self, rules: Ordered[DrawRule]) -> RuleNumbers | None:
        """For the kernels; None where they cannot be used."""
        if not self._finds_heads and not self._has_kernel:
            return None
        if any(t != 1.0 for rule in rules for t in rule.network_temperatures):
            return None
        if self._finds_heads and any(rule.head_lambda == 0.0 for rule in rules):
            return None
        exempt = [rule.exempt_token_ids for rule in rules]
        return number_rules(
            rules, self.vocab_size, self._mark(exempt, len(rules)) if any(exempt) else None, self.device
        )

    def _banned(self, sequences: list[Sequence]) -> Tensor | None:
        """Tokens that would end a sequence before its minimum, or None where no row has one to keep."""
        early = [s.stop_token_ids if s.num_drawn < s.parameters.min_tokens else () for s in sequences]
        return self._mark(early, len(sequences)) if any(early) else None

    def _mark(self, ids: Iterable[Iterable[int]], count: int) -> Tensor:
        mask_BV = torch.zeros(count, self.vocab_size, dtype=torch.bool)
        for row, row_ids in enumerate(ids):
            mask_BV[row, [token_id for token_id in row_ids if token_id < self.vocab_size]] = True
        return to_device(mask_BV, self.device)


def token_records(record_BR: Tensor) -> list[TokenRecord]:
    """What the numbers of `Drawn` say of each token."""
    return [
        TokenRecord(int(token_id), tuple(logprobs), mixture_logprob, int(head_size))
        for token_id, head_size, mixture_logprob, *logprobs in record_BR.tolist()
    ]


def _seen(sequence: Sequence) -> list[int]:
    """Tokens that a sequence's repetition penalty acts on."""
    is_prompt_seen = sequence.parameters.penalty_rule != "additive"
    return sequence.token_ids if is_prompt_seen else sequence.completion_token_ids
