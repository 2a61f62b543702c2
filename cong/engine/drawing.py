"""The rows of a step that draw a token, and the rules they draw by, kept from step to step while the rows stay.

Legend: K networks, B drawing rows, V tokens.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cong.decoding import Rules, Step, decode_heads, decode_step, logprobs, stack_rules
from cong.engine.heads import HEAD_WIDTH, find_heads_on_gpu
from cong.engine.protocol import TokenRecord
from cong.engine.scheduler import Chunk
from cong.engine.sequence import Sequence


@dataclass
class _Rows:
    """One batch of drawing sequences and what stays the same while it does."""

    sequences: list[Sequence]
    rules: Rules
    sample_index_B: Tensor
    is_seen_BV: Tensor | None
    has_small_heads: bool
    """Whether every head set so far was small enough to be looked at alone."""


class Drawer:
    """Draws one token for each of many sequences."""

    def __init__(self, vocab_size: int, device: torch.device, *, finds_heads: bool = False) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self._finds_heads = finds_heads
        self._rows: _Rows | None = None

    @torch.inference_mode()
    def draw(self, sequences: list[Sequence], logits: Ordered[Tensor]) -> list[TokenRecord]:
        """The next token of each sequence, given every network's [B, V] logits."""
        if not sequences:
            return []
        rows = self._rows_for(sequences)
        logits = tuple(logits_BV[:, : self.vocab_size] for logits_BV in logits)
        position_B = torch.tensor([sequence.num_drawn for sequence in sequences], device=self.device)
        given = (rows.rules, rows.sample_index_B, position_B)
        banned_BV = self._banned(sequences)
        if rows.has_small_heads:
            heads = find_heads_on_gpu(logits, rows.rules.head_log_lambda_B)
            step = decode_heads(heads, *given, self.vocab_size, rows.is_seen_BV, banned_BV)
            records = _records(replace(step, head_size_B=heads.sizes_B))
            rows.has_small_heads = all(record.head_size <= HEAD_WIDTH for record in records)
        if not rows.has_small_heads:
            step = decode_step(logits, *given, rows.is_seen_BV, banned_BV)
            records = _records(step)
        if rows.is_seen_BV is not None:
            rows.is_seen_BV.scatter_(1, step.token_B[:, None], True)
        return records

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
            parameters = [sequence.parameters for sequence in sequences]
            has_penalty = any(p.repetition_penalty != 1.0 for p in parameters)
            self._rows = _Rows(
                sequences=sequences,
                rules=stack_rules([sequence.rule for sequence in sequences], self.vocab_size, self.device),
                sample_index_B=torch.tensor([sequence.sample_index for sequence in sequences], device=self.device),
                is_seen_BV=self._mark(map(_seen, sequences), len(sequences)) if has_penalty else None,
                has_small_heads=self._finds_heads
                and not any(p.head_lambda == 0.0 or any(t != 1.0 for t in p.network_temperatures) for p in parameters),
            )
        return self._rows

    def _banned(self, sequences: list[Sequence]) -> Tensor | None:
        """Tokens that would end a sequence before its minimum, or None where no row has one to keep."""
        early = [s.stop_token_ids if s.num_drawn < s.parameters.min_tokens else () for s in sequences]
        return self._mark(early, len(sequences)) if any(early) else None

    def _mark(self, ids: Iterable[Iterable[int]], count: int) -> Tensor:
        mask_BV = torch.zeros(count, self.vocab_size, dtype=torch.bool)
        for row, row_ids in enumerate(ids):
            mask_BV[row, [token_id for token_id in row_ids if token_id < self.vocab_size]] = True
        return mask_BV.to(self.device)


def _records(step: Step) -> list[TokenRecord]:
    """What is recorded of each drawn token, in one transfer from the device."""
    columns = (step.token_B, step.head_size_B, step.mixture_logprob_B, *step.logprobs_BK.unbind(-1))
    rows = torch.stack([column.double() for column in columns], dim=-1).tolist()
    return [TokenRecord(int(row[0]), tuple(row[3:]), row[2], int(row[1])) for row in rows]


def _seen(sequence: Sequence) -> list[int]:
    """Tokens that a sequence's repetition penalty acts on."""
    is_prompt_seen = sequence.parameters.penalty_rule != "additive"
    return sequence.token_ids if is_prompt_seen else sequence.completion_token_ids
