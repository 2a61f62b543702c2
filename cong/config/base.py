"""The base of all settings, and the types that several sections share."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Settings(BaseModel):
    """A frozen section of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as truth values, which would pass as 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation in (int, float):
            raise ValueError("is yes or no, and a number is needed")
        return value

    @field_validator("*")
    @classmethod
    def _at_home(cls, value: Any) -> Any:
        """As a shell does it, which never sees a file's lines and what stands behind `--set A=`."""
        if isinstance(value, str | Path) and str(value).startswith("~/"):
            return type(value)(os.path.expanduser(value))
        return value


Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
