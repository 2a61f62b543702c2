"""The ways in which the experiment decodes the weak models, each under the name that tables give it."""

from collections.abc import Mapping
from typing import Any

from cong.config.lab import LabConfig
from cong.schemas import SamplingParameters

BASE = "base T=1"
ALIGNED = "aligned T=1"
CONTRASTIVE = "contrastive"
"""The configured contrast; other strengths are named by their alpha."""

ALIGNED_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "aligned T=0.8 top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "aligned T=0.7": {"temperature": 0.7},
    "aligned T=0.5": {"temperature": 0.5},
    "aligned T=0.3": {"temperature": 0.3},
    "aligned greedy": {"temperature": 0.0},
    "aligned top-p 0.95": {"top_p": 0.95},
    "aligned min-p 0.1": {"head_lambda": 0.1},
}
"""Ways to lower the aligned model's noise without a second model: the rivals of contrast at decoding time."""


def alpha_name(alpha: float) -> str:
    """Name of contrastive decoding at temperature 1."""
    return f"contrastive alpha={alpha:g}"


def plain_decodings(config: LabConfig) -> dict[str, SamplingParameters]:
    """Decodings of the aligned model alone."""
    limit = {"max_tokens": config.max_response_tokens}
    return {
        ALIGNED: SamplingParameters.plain(**limit),
        **{name: SamplingParameters.plain(**limit, **rule) for name, rule in ALIGNED_SETTINGS.items()},
    }


def contrastive_decodings(config: LabConfig) -> dict[str, SamplingParameters]:
    """Decodings of the weak pair: the configured one, a sweep over alpha, and its variations."""
    contrast = config.contrast
    fixed = {"max_tokens": config.max_response_tokens, "head_lambda": contrast.head_lambda}
    usual = SamplingParameters.contrastive(contrast.alpha, temperature=contrast.temperature, **fixed)
    decodings = {CONTRASTIVE: usual}
    for alpha in config.evaluation.alphas:
        decodings[alpha_name(alpha)] = SamplingParameters.contrastive(alpha, **fixed)
    for temperature in (0.7, 0.5, 0.0):
        name = f"contrastive T={temperature:g}" if temperature else "contrastive greedy"
        decodings[name] = usual.model_copy(update={"temperature": temperature})
    for head_lambda in (0.0, 0.02, 0.3):
        decodings[f"contrastive lambda={head_lambda:g}"] = usual.model_copy(update={"head_lambda": head_lambda})
    return decodings
