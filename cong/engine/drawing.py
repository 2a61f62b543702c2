"""The rows of a step that draw a token, and the rules they draw by, kept from step to step while the rows stay.

Legend: K networks, B drawing rows, V tokens.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import torch
from torch import Tensor

from cong.decoding import Rules, decode_step, logprobs, stack_rules
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


class Drawer:
    """Draws one token for each of many sequences."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self._rows: _Rows | None = None

    @torch.inference_mode()
    def draw(self, sequences: list[Sequence], logits: Ordered[Tensor]) -> list[TokenRecord]:
        """The next token of each sequence, given every network's [B, V] logits."""
        if not sequences:
            return []
        rows = self._rows_for(sequences)
        step = decode_step(
            [logits_BV[:, : self.vocab_size] for logits_BV in logits],
            rows.rules,
            rows.sample_index_B,
            torch.tensor([sequence.num_drawn for sequence in sequences], device=self.device),
            rows.is_seen_BV,
            self._banned(sequences),
        )
        if rows.is_seen_BV is not None:
            rows.is_seen_BV.scatter_(1, step.token_B[:, None], True)
        numbers = torch.cat([step.mixture_logprob_B[:, None].double(), step.logprobs_BK.double()], dim=1).tolist()
        return [
            TokenRecord(token_id, tuple(values[1:]), values[0], head_size)
            for token_id, values, head_size in zip(
                step.token_B.tolist(), numbers, step.head_size_B.tolist(), strict=True
            )
        ]

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


def _seen(sequence: Sequence) -> list[int]:
    """Tokens that a sequence's repetition penalty acts on."""
    is_prompt_seen = sequence.parameters.penalty_rule != "additive"
    return sequence.token_ids if is_prompt_seen else sequence.completion_token_ids
