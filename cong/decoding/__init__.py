"""The decoding rule as pure mathematics: mixture, head set, warps, draws. Imports torch and nothing else."""

from cong.decoding.contrast import Mixture, head_mask, interpolate_logits, logprobs, mix, penalize, reference_shift
from cong.decoding.draw import draw, prompt_seed, uniforms, warp
from cong.decoding.methods import METHODS, Parametrisation, equivalent_alpha, parametrise
from cong.decoding.rules import DrawRule, Rules, stack_rules
from cong.decoding.step import Step, decode_step, distribution

__all__ = [
    "METHODS",
    "DrawRule",
    "Mixture",
    "Parametrisation",
    "Rules",
    "Step",
    "decode_step",
    "distribution",
    "draw",
    "equivalent_alpha",
    "head_mask",
    "interpolate_logits",
    "logprobs",
    "mix",
    "parametrise",
    "penalize",
    "prompt_seed",
    "reference_shift",
    "stack_rules",
    "uniforms",
    "warp",
]
