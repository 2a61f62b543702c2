"""A fresh LoRA adapter on a network, as what is trained in place of the network's own weights."""

from typing import Any, cast

from torch import nn

from cong.config.train import LoraSettings
from cong.errors import ConfigError
from cong.models.silence import silence
from cong.wording import brought_by


def add_lora(model: nn.Module, settings: LoraSettings) -> Any:
    """Put an adapter on a network in place; returns peft's wrapper, which can save and merge it.

    Its first factor is drawn from torch's global generator, its second is zero: nothing changes before training. Both
    are in float32, whatever the network is in.
    """
    with brought_by("lora"):
        from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast(Any, settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        with silence():
            return get_peft_model(cast(Any, model), config)
    except ValueError as error:
        raise ConfigError(
            f"train.lora.target_modules {list(settings.target_modules)} cannot be used: {error}"
        ) from error
