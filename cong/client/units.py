"""What is wanted of many prompts, and a name for what is wanted of each: made of all that decides about it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cong.errors import ConfigError
from cong.schemas import Prompt, SampleRecord, SamplingParameters, content_key
from cong.wire import InfoReply, StoreLevel


@dataclass(frozen=True)
class Ask:
    """What is wanted of every prompt."""

    parameters: SamplingParameters
    num_samples: int = 1
    store: StoreLevel = "none"
    deadline_s: float | None = None

    def require_offered(self, info: InfoReply, url: str) -> None:
        """Refuse at once what a deployment would refuse for every single prompt."""
        asked, limits = self.parameters, info.limits
        if asked.max_tokens > limits.max_new_tokens:
            raise ConfigError(
                f"sampling.max_tokens is {asked.max_tokens}, and {url} gives a sample at most {limits.max_new_tokens} "
                "new tokens; lower sampling.max_tokens"
            )
        if self.num_samples > limits.max_samples:
            raise ConfigError(
                f"{self.num_samples} samples of each prompt are asked for, and a request to {url} may ask for "
                f"{limits.max_samples}; ask for fewer"
            )
        if len(asked.weights) != len(info.networks):
            held = ", ".join(network.role for network in info.networks)
            raise ConfigError(
                f"sampling.weights has {len(asked.weights)} entries, and {url} holds {len(info.networks)} network(s) "
                f"({held}); give one weight for each"
            )


def networks_name(networks: Iterable[tuple[str, str]], tokenizer_fingerprint: str, stream: str | None = None) -> str:
    """A name for what decides about samples in a deployment, role and fingerprint of each network and the tokenizer,
    and for where they are kept."""
    return content_key([[list(pair) for pair in networks], tokenizer_fingerprint, stream])


def unit_name(
    deployment: str, prompt: Mapping[str, Any], parameters: Mapping[str, Any], num_samples: int, store: StoreLevel
) -> str:
    """A name for the samples of one prompt, from JSON; the prompt's id makes no difference to them."""
    content = {name: value for name, value in prompt.items() if name != "prompt_id"}
    return content_key([deployment, content, parameters, num_samples, store])


class Units:
    """Names for what is asked of one deployment."""

    def __init__(self, info: InfoReply, ask: Ask, *, with_stream: bool = True) -> None:
        """`with_stream` makes the place where samples are kept a part of the names."""
        pairs = [(network.role, network.fingerprint) for network in info.networks]
        self._networks = networks_name(pairs, info.tokenizer_fingerprint)
        stream = info.stream_location if with_stream else None
        self._deployment = networks_name(pairs, info.tokenizer_fingerprint, stream)
        self._parameters = ask.parameters.model_dump(mode="json")
        self._ask = ask

    def of(self, prompt: Prompt) -> str:
        """The name of one prompt's samples."""
        content = prompt.model_dump(mode="json")
        return unit_name(self._deployment, content, self._parameters, self._ask.num_samples, self._ask.store)

    def request_key(self, prompt: Prompt) -> str:
        """The idempotency key of the request for them; the id is part of what is stored, so it is part of this."""
        return content_key([self.of(prompt), prompt.prompt_id, self._ask.deadline_s])

    def is_from_here(self, record: SampleRecord) -> bool:
        """Whether a sample is of the networks that the deployment named."""
        pairs = [(network.role, network.fingerprint) for network in record.networks]
        return networks_name(pairs, record.tokenizer_fingerprint) == self._networks
