"""One sample on its way: its tokens, its blocks, and what has been recorded of it. Knows no tensors and no text."""

import functools
from dataclasses import dataclass, field

from cong.decoding import prompt_seed
from cong.engine.blocks import PrefixKey
from cong.engine.protocol import TokenRecord
from cong.engine.text import TextStream
from cong.schemas import FinishReason, SamplingParameters

_seed_of = functools.lru_cache(maxsize=1)(prompt_seed)
"""The samples of a request come one after the other, and each would go through the whole prompt again."""


@dataclass(eq=False)
class Sequence:
    """One sample of one request, from waiting to finished."""

    request_id: str
    sample_index: int
    prompt_token_ids: tuple[int, ...]
    parameters: SamplingParameters
    stop_token_ids: frozenset[int]
    """Every token that ends this sequence: ends of sequence of the networks and the request's own."""
    arrival: int
    """Position in the order of submission; the larger, the younger."""
    submitted_at: float = 0.0
    """This and the next two on the engine's clock."""
    admitted_at: float | None = None
    first_token_at: float | None = None
    token_ids: list[int] = field(default_factory=list)
    """Prompt and completion."""
    records: list[TokenRecord] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    prefix_keys: list[PrefixKey] = field(default_factory=list)
    num_computed: int = 0
    """Tokens whose keys and values lie in the blocks."""
    is_running: bool = False
    finish_reason: FinishReason | None = None
    targets: tuple[int, ...] = ()
    """Tokens to be scored instead of drawn; their keys and values are needed for all but the last."""
    key: str = ""
    """The sample's identity."""
    text: TextStream | None = None
    """Where the text is needed while it grows: for stop strings, or because it is streamed."""

    rule: SamplingParameters = field(init=False)
    """The parameters with the seed of this prompt's draws."""

    def __post_init__(self) -> None:
        seed = _seed_of(self.parameters.seed, self.prompt_token_ids)
        self.rule = self.parameters.model_copy(update={"seed": seed})
        self.token_ids = [*self.prompt_token_ids, *self.targets[:-1]]

    @property
    def num_shareable_tokens(self) -> int:
        """Tokens from the start whose blocks others may share; of a scored text, those before its first logits."""
        return len(self.prompt_token_ids) - 1 if self.targets else len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and completion tokens."""
        return len(self.token_ids)

    @property
    def num_drawn(self) -> int:
        """Completion tokens."""
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def num_pending(self) -> int:
        """Tokens that must still be computed before the next one can be drawn."""
        return len(self.token_ids) - self.num_computed

    @property
    def draws_last(self) -> bool:
        """Whether the next token drawn is the last one, whatever it is."""
        return self.num_drawn + 1 >= self.parameters.max_tokens

    @property
    def completion_token_ids(self) -> list[int]:
        """Tokens drawn so far."""
        return self.token_ids[len(self.prompt_token_ids) :]

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will be drawn."""
        return self.finish_reason is not None

    def append(self, record: TokenRecord) -> str:
        """Take a drawn token, and finish if it is the last one; returns the text that became certain."""
        self.token_ids.append(record.token_id)
        self.records.append(record)
        piece = ""
        if self.text is not None:
            piece = self.text.push(record.token_id, can_stop=self.num_drawn > self.parameters.min_tokens)
        if (record.token_id in self.stop_token_ids and self.num_drawn > self.parameters.min_tokens) or (
            self.text is not None and self.text.is_stopped
        ):
            self.finish_reason = "stop"
        elif self.num_drawn >= self.parameters.max_tokens:
            self.finish_reason = "length"
        return piece
