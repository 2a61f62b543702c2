"""What may change while a replica runs: `user_config` of a Serve file. Everything else starts new replicas."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from cong.config import Settings
from cong.config.loading import check
from cong.config.service import ServiceConfig


class LightSettings(Settings):
    """Limits that take the place of those that the replica started with. Keys are read again on every change."""

    generation: int = Field(default=0, ge=0)
    """Means nothing; another number makes Serve hand the settings in anew, and with that keys are read again."""
    default_deadline_s: float | None = Field(default=None, gt=0.0)
    max_waiting: int | None = Field(default=None, ge=1)
    max_concurrent_per_key: int | None = Field(default=None, ge=1)
    keep_alive_s: float | None = Field(default=None, gt=0.0)
    write_timeout_s: float | None = Field(default=None, gt=0.0)
    stream_writes_per_s: float | None = Field(default=None, gt=0.0)
    max_stream_gap_s: float | None = Field(default=None, gt=0.0)

    @classmethod
    def read(cls, user_config: Mapping[str, Any]) -> "LightSettings":
        """Checked, with the nearest known key for an unknown one."""
        return check(cls, user_config, "user_config")

    def over(self, started_with: ServiceConfig) -> ServiceConfig:
        """The service's settings with these in their place."""
        changed = self.model_dump(exclude={"generation"}, exclude_none=True)
        return check(ServiceConfig, {**started_with.model_dump(), **changed}, "user_config over service")
