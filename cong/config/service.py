"""Settings of the service: what one request may ask, how long it may take, who may ask, what may be kept."""

import ipaddress
from typing import Self

from pydantic import Field, model_validator

from cong.config.base import Count, PositiveFloat, Settings
from cong.schemas import Identifier


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ServiceConfig(Settings):
    """Bounds of one replica; every wait has one."""

    deployment: Identifier = "cong"
    """The name by which OpenAI clients ask for it as `model`, and that `/info` tells."""
    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; one that other machines can reach needs keys."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """0 = any free port."""
    api_keys_file: str = ""
    """File of hashed keys, one a line, as `cong.service.keys` writes them; read again when it changes. Empty = none."""
    api_keys_env: str = ""
    """Name of the environment variable that holds such lines, separated by commas or line ends; empty = none."""
    api_keys_reload_s: PositiveFloat = 5.0
    """How often the file is looked at."""

    max_body_bytes: int = Field(default=8 << 20, ge=1024, le=1 << 30)
    max_total_tokens: int = Field(default=0, ge=0)
    """Prompt and completion of one sample together; 0 = what the engine can hold."""
    max_new_tokens: Count = 4096
    """Of one sample."""
    max_samples: Count = 1024
    """Of one request, over all its prompts; also the texts of one scoring request."""
    max_waiting: Count = 4096
    """Samples that may wait while all seats of the engine are taken; beyond it the answer is when to try again."""
    max_concurrent_per_key: Count = 256
    """Requests of one key that are being served; without keys all callers count as one."""
    max_buffered_events: Count = 16_384
    """Tokens and samples that one caller may leave unread before its request is cancelled."""

    default_deadline_s: PositiveFloat = 600.0
    """Of a request that names none."""
    max_deadline_s: PositiveFloat = 3600.0
    """A request that names more gets this."""
    body_timeout_s: PositiveFloat = 30.0
    """In which a body must have arrived."""
    write_timeout_s: PositiveFloat = 60.0
    """So long a caller may leave its connection full before it is taken for gone."""
    keep_alive_s: PositiveFloat = 15.0
    """A streaming answer says at least this often that it is alive."""
    stream_writes_per_s: PositiveFloat = 500.0
    """Of all token streams together: with many of them, several tokens go into a write."""
    max_stream_gap_s: PositiveFloat = 0.25
    """No token waits longer than this for others to go with; 0.001 = each goes alone."""
    engine_niceness: int = Field(default=0, ge=0, le=19)
    """So much the engine's threads give way to those that answer callers; for networks that compute on the CPU."""
    stuck_after_s: PositiveFloat = 120.0
    """An engine that has work and finishes no step for so long counts as stuck; longer than its slowest step."""
    drain_s: float = Field(default=60.0, ge=0.0)
    """What runs when the service closes may take so long to finish; then it is cut short."""

    idempotency_ttl_s: PositiveFloat = 600.0
    """An answer is kept so long for a retry with the same idempotency key; stored samples are found for ever."""
    max_idempotent_answers: Count = 4096
    max_idempotent_tokens: Count = 500_000
    """Tokens of all answers that are kept for retries; the oldest go first."""

    may_store_prompts: bool = False
    """Whether a request may have its samples kept in the stream, with their prompts. Off: nothing is kept."""
    store_timeout_s: PositiveFloat = 30.0
    """A sample that is not acknowledged by then is not answered."""
    has_tracing: bool = False
    """Whether requests become OpenTelemetry spans, with counts and times and without any text."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not is_loopback(self.host) and not self.has_keys:
            raise ValueError(
                f"host is {self.host!r}, which other machines can reach, and there are no keys; set api_keys_file or "
                "api_keys_env, or listen on 127.0.0.1"
            )
        if self.max_samples > self.max_waiting:
            raise ValueError(
                f"max_samples is {self.max_samples}, more than max_waiting, {self.max_waiting}: such a request could "
                "never be taken"
            )
        if self.default_deadline_s > self.max_deadline_s:
            raise ValueError(
                f"default_deadline_s is {self.default_deadline_s}, more than max_deadline_s, {self.max_deadline_s}"
            )
        return self

    @property
    def has_keys(self) -> bool:
        """Whether callers need a key."""
        return bool(self.api_keys_file or self.api_keys_env)
