"""The base of all settings, and the types that several sections share."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from cong.schemas import Input


class Settings(Input):
    """A frozen section of the configuration that refuses keys it does not know."""

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
