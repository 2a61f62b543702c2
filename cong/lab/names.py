"""The names under which results hold the models and sets of answers that are compared, decodings aside."""

from cong.lab.decodings import ALIGNED

WEAK_ALIGNED = "weak aligned"
STRONG_BASE = "strong base"
WEAK_SFT = "WeakSFT"
CONG_S = "ConG-S"
CONG = "ConG"
CONG_ONE = "ConG, 1 DPO epoch"
PLAIN_DPO = "WeakSFT + DPO, plain chosen"
MATCHED = "ConG-S, 2 epochs (step-matched)"
CONVERGED = "ConG-S, 3 epochs lr 4e-4 (converged)"
CONVERGED_DPO = "converged ConG-S + DPO"
WEAK_CONVERGED = "WeakSFT, 3 epochs lr 4e-4"
OWN = "own samples of ConG-S (rejected in stage 2)"
CEILING = "ceiling (SFT on gold)"
AUX_CONF = "AuxConf"
PREFERENCES = "DPO on gold preferences"

LABEL_DECODINGS = {
    ALIGNED: WEAK_SFT,
    "aligned T=0.8 top-p 0.95": "WeakSFT, T=0.8 top-p 0.95",
    "aligned T=0.5": "WeakSFT, T=0.5",
    "aligned greedy": "WeakSFT, greedy",
    "aligned min-p 0.1": "WeakSFT, min-p 0.1",
}
"""Decoding of the aligned model -> name of the strong model that imitates it."""


def wspo_name(gamma: float) -> str:
    """Name of the strong model trained by WSPO."""
    return f"WSPO gamma={gamma:g}"


def temperature_name(temperature: float) -> str:
    """Name of an evaluation temperature."""
    return f"T={temperature:g}" if temperature else "greedy"
