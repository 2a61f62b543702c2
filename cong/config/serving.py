"""What a Serve file hands the application: a run's configuration, what a replica takes, and what may change later.

Read by the application and by whoever checks such a file without Ray.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from cong.config.base import Settings
from cong.config.loading import check
from cong.config.service import ServiceConfig
from cong.config.settings import RunConfig

IMPORT_PATH = "serve.app:build"


class Resources(Settings):
    """What one replica takes of its node; two replicas never share an accelerator unless this says so."""

    num_cpus: float = Field(default=1.0, ge=0.0)
    num_gpus: float | None = Field(default=None, ge=0.0)
    """None = one where `models.device` is a CUDA device, none elsewhere."""
    memory_bytes: int = Field(default=0, ge=0)
    """Of main memory, for Ray's bookkeeping only; 0 = not accounted for."""
    custom: dict[str, float] = Field(default_factory=dict)
    """Other resources by the names that the cluster gives them."""


class Arguments(RunConfig):
    """`args` of a Serve file: a run's configuration, and what only the application asks."""

    config: str = ""
    """A run's configuration file, readable where the application is built; what is given here goes over it."""
    uses_lab_pair: bool = False
    """Serve the two tiny models that come with the package; `models` names none then."""
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _names_one_pair(self) -> Self:
        named = [role for role in ("strong", "aligned", "base") if getattr(self.models, role).source]
        if self.uses_lab_pair and named:
            source = getattr(self.models, named[0]).source
            raise ValueError(
                f"models.{named[0]}.source is {source!r}, and uses_lab_pair serves the models of the package instead; "
                "set it to false, or name no models"
            )
        return self


class LightSettings(Settings):
    """`user_config` of a Serve file: limits that take the place of those that the replica started with.

    They change while it runs, and keys are read again on every change; everything else starts new replicas.
    """

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
