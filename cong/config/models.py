"""Settings of the networks: where each lies, and how it is loaded."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cong.config.base import Settings


class NetworkConfig(Settings):
    """One network: a folder or hub id, with or without a LoRA adapter on top."""

    source: str = Field(default="", max_length=4096)
    """Folder in Hugging Face format, or hub id; empty = there is none."""
    revision: str | None = None
    """Commit of a hub id; None = the newest."""
    adapter: str | None = None
    """Folder or hub id of a LoRA adapter. Where another network has the same source, both share one copy of it."""


class ModelsConfig(Settings):
    """The networks of a run by their role; they must share a tokenizer."""

    strong: NetworkConfig = NetworkConfig()
    aligned: NetworkConfig = NetworkConfig()
    base: NetworkConfig = NetworkConfig()
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    device: str = "cpu"
    """cpu, cuda or cuda:0."""
    root: Path | None = None
    """Refuse every path outside this folder; None = any path is allowed."""
    chat_template: Path | None = None
    """Jinja file that renders messages; None = the template that comes with the tokenizer."""
