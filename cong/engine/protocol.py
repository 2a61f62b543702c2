"""What an engine is to whoever uses it: requests in, events out, one step at a time. Knows nothing of how it is done.

An engine belongs to one thread. `events` does one step of work and returns what happened in it; between steps
requests may come and go.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from cong.models import NetworkSet
from cong.schemas import NetworkIdentity, Prompt, SampleRecord, SampleRequest, SamplingParameters, Score


class TokenRecord(NamedTuple):
    """What a step says about one token that was drawn or scored."""

    token_id: int
    logprobs: tuple[float, ...]
    """Under each network, at temperature 1."""
    mixture_logprob: float = 0.0
    """Under the distribution it was drawn from."""
    head_size: int = 0

    @property
    def is_finite(self) -> bool:
        """Whether its log-probabilities are numbers; not where a network's logits are none."""
        return math.isfinite(self.mixture_logprob + sum(self.logprobs))


@dataclass(frozen=True)
class Generate:
    """Samples wanted of one prompt, under an id that the caller chooses."""

    request_id: str
    prompt: Prompt
    parameters: SamplingParameters
    sample_indices: tuple[int, ...] = (0,)
    deadline_s: float | None = None
    """Seconds from submission; what is unfinished then ends as it is."""
    streams: bool = False
    """Whether every token is reported, not only finished samples."""
    prompt_token_ids: tuple[int, ...] = ()
    """The prompt as the deployment's tokenizer encodes it; empty = the engine encodes it."""


@dataclass(frozen=True)
class Rate:
    """A completion to be scored under every network, under an id that the caller chooses."""

    request_id: str
    prompt: Prompt
    completion_token_ids: tuple[int, ...]
    deadline_s: float | None = None
    prompt_token_ids: tuple[int, ...] = ()
    """The prompt as the deployment's tokenizer encodes it; empty = the engine encodes it."""


@dataclass(frozen=True)
class TokenDrawn:
    """One token of a streaming request; text may lag behind where a character is not complete."""

    request_id: str
    sample_index: int
    text: str
    """What became certain with it."""
    token: TokenRecord


@dataclass(frozen=True)
class SampleFinished:
    """One sample is complete, whatever the reason."""

    request_id: str
    sample_index: int
    record: SampleRecord
    problem: str = ""
    """What was wrong, where the record ended by `error`."""


@dataclass(frozen=True)
class Rated:
    """A completion has been scored."""

    request_id: str
    score: Score
    """Shorter than asked where the request was cancelled, its deadline passed or there was a problem."""
    problem: str = ""
    """What was wrong with the log-probs behind those that are there."""


Event = TokenDrawn | SampleFinished | Rated


@dataclass(frozen=True)
class EngineStats:
    """Counters since the engine started, and gauges of this moment."""

    num_seats: int = 0
    """Sequences that one step can compute."""
    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_blocks_free: int = 0
    num_prefix_hits: int = 0
    """Blocks that were shared instead of computed."""
    num_preemptions: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    """Tokens computed that were not drawn in the step before: prompts, and recomputation after preemption."""
    num_drawn_tokens: int = 0
    num_finished: int = 0
    bytes_moved: int = 0
    """Weights, keys and values that the steps had to read at least."""
    num_operations: int = 0
    """Multiplications and additions that the steps had to do at least."""
    bound_s: float = 0.0
    """What that would have taken at least, at the rates of a large copy and a large product on this machine."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of steps, split into schedule, forward, mix and commit."""

    @property
    def share_of_bound(self) -> float:
        """How near the steps come to what the machine can do, 0 before the first; weights that fit into its caches
        can take it above 1."""
        return self.bound_s / (sum(self.seconds.values()) or 1.0)


class EngineProtocol(Protocol):
    """Anything that turns requests into samples."""

    @property
    def identities(self) -> tuple[NetworkIdentity, ...]:
        """The networks, in the order of a mixture's weights."""
        ...

    def submit(self, request: Generate) -> None:
        """Queue samples; refuses what can never be served."""
        ...

    def score(self, request: Rate) -> None:
        """Queue a scoring; its answer is an event."""
        ...

    def cancel(self, request_id: str) -> None:
        """End what is left of a request; its unfinished samples are reported as cancelled."""
        ...

    def events(self) -> Ordered[Event]:
        """Do one step and return what happened; empty when there was nothing to do."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether another step would do anything."""
        ...

    def stats(self) -> EngineStats:
        """Where the engine stands."""
        ...

    def close(self) -> None:
        """End whatever works for the engine; it is not asked for anything more. A second time does nothing."""
        ...


class LocalEngine(EngineProtocol, Protocol):
    """An engine in this process, whoever computes for it."""

    @property
    def networks(self) -> NetworkSet:
        """The networks; whether they hold weights is the engine's affair."""
        ...

    @property
    def max_tokens(self) -> int:
        """Prompt and completion tokens of the longest sequence that can be served."""
        ...

    @property
    def max_running(self) -> int:
        """Sequences that are computed in one step; whoever has many requests keeps about so many waiting."""
        ...

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt in any of its forms."""
        ...

    def keys(self, request: SampleRequest) -> tuple[str, ...]:
        """The keys of the request's samples, in order of their index, whether they are made yet or not."""
        ...

    def generate(
        self, requests: Iterable[SampleRequest], known_keys: Collection[str] = frozenset()
    ) -> Iterator[SampleRecord]:
        """Samples of many requests as they finish, in any order, but for those whose key is known."""
        ...
