"""What travels with every vLLM request to the worker that draws for it. Knows no vLLM."""

from pydantic import BaseModel, ConfigDict

from cong.engine.sequence import Sequence
from cong.schemas import SamplingParameters

ARGUMENT = "cong"
"""Its name among the extra arguments of vLLM's sampling parameters."""


class Wish(BaseModel):
    """How one sample is drawn, or which last token is scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: SamplingParameters
    sample_index: int = 0
    stop_token_ids: tuple[int, ...] = ()
    last_target: int | None = None
    """Of a text to be scored, whose other tokens are the prompt."""

    def sequence(self, request_id: str, prompt_token_ids: list[int]) -> Sequence:
        """The sequence as the worker's drawing needs it."""
        return Sequence(
            request_id=request_id,
            sample_index=self.sample_index,
            prompt_token_ids=tuple(prompt_token_ids),
            parameters=self.parameters,
            stop_token_ids=frozenset(self.stop_token_ids),
            arrival=0,
            targets=() if self.last_target is None else (self.last_target,),
        )
