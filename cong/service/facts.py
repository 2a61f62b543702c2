"""What a deployment is: its name, its networks, its tokenizer and its bounds, fixed when it starts."""

from dataclasses import dataclass

from cong.config.service import ServiceConfig
from cong.decoding import METHODS, Parametrisation
from cong.schemas import SamplingParameters
from cong.service.vocabulary import Vocabulary
from cong.wire import InfoReply, Limits, NetworkInfo, StoreLevel


@dataclass(frozen=True)
class Facts:
    """What the service knows of its engine beyond the engine's protocol."""

    backend: str
    """The kind of engine, for people."""
    networks: tuple[NetworkInfo, ...]
    vocabulary: Vocabulary
    max_tokens: int
    """Prompt and completion tokens of the longest sample that the engine can hold."""
    defaults: SamplingParameters
    """How samples are drawn unless a request says otherwise."""
    software: dict[str, str]

    def _fits(self, preset: Parametrisation) -> bool:
        return len(preset.weights) == len(self.networks)

    def limits(self, config: ServiceConfig) -> Limits:
        """What one request may ask."""
        total = min(self.max_tokens, config.max_total_tokens or self.max_tokens)
        return Limits(
            max_total_tokens=total,
            max_new_tokens=min(config.max_new_tokens, total),
            max_samples=config.max_samples,
            max_body_bytes=config.max_body_bytes,
            max_deadline_s=config.max_deadline_s,
            max_concurrent_per_key=config.max_concurrent_per_key,
        )

    def info(self, config: ServiceConfig, levels: tuple[StoreLevel, ...], stream_location: str | None) -> InfoReply:
        """What `/info` tells."""
        return InfoReply(
            deployment=config.deployment,
            backend=self.backend,
            networks=self.networks,
            tokenizer_fingerprint=self.vocabulary.fingerprint,
            defaults=self.defaults,
            limits=self.limits(config),
            store_levels=levels,
            stream_location=stream_location,
            methods=tuple(sorted(name for name, preset in METHODS.items() if self._fits(preset()))),
            software=self.software,
        )
