"""A network without weights, from its configuration alone: every tensor has its shape, on torch's meta device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from cong.errors import UnsupportedModel
from cong.models.artefact import open_artefact
from cong.models.pretrained import build_without_weights, read_config
from cong.models.silence import silence


def open_blueprint(source: str, *, root: Path | None = None) -> nn.Module:
    """Of a folder that holds at least a config.json; with a `root` it lies below that."""
    artefact = open_artefact(source, root=root, with_weights=False)
    return build_without_weights(read_config(artefact), artefact.name)


def make_blueprint(name: str, facts: Mapping[str, Any]) -> nn.Module:
    """Of the content of a config.json."""
    try:
        with silence():
            config = transformers.AutoConfig.for_model(**facts)
    except (ValueError, TypeError) as error:
        raise UnsupportedModel(
            f"{name} cannot be used: transformers cannot read its configuration ({error})"
        ) from error
    return build_without_weights(config, name)
