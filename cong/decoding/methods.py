"""Other people's contrastive methods as weights of one mixture, so that their parameters are accepted by name.

Every method here scores a token by sum_k w_k log p_k on a head set; they differ in the weights, in the temperature of
a network, and in the cut of the head. Knows arithmetic only.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cong.errors import ConfigError


@dataclass(frozen=True)
class Parametrisation:
    """A method's settings in the terms of the sampling parameters of the same names."""

    weights: tuple[float, ...]
    head_lambda: float = 0.1
    network_temperatures: tuple[float, ...] = ()
    temperature: float | None = None
    """None = whatever the request says."""


def cong(alpha: float = 0.4, relative_top: float = 0.1) -> Parametrisation:
    """ConG (2510.07884): log p_aligned - (1 - alpha) log p_base."""
    return Parametrisation((1.0, alpha - 1.0), relative_top)


def contrastive_decoding(coefficient: float = 1.0, amateur_temperature: float = 1.0, a: float = 0.1) -> Parametrisation:
    """Li et al. 2022 (2210.15097): log p_expert - c log p_amateur, the amateur at its own temperature."""
    temperatures = () if amateur_temperature == 1.0 else (1.0, amateur_temperature)
    return Parametrisation((1.0, -coefficient), a, temperatures)


def obrien_lewis(beta: float = 0.5, a: float = 0.1) -> Parametrisation:
    """O'Brien and Lewis 2023 (2309.09117): (1 + beta) z_expert - beta z_amateur."""
    return Parametrisation((1.0 + beta, -beta), a)


def epicode(strength: float = 0.5, a: float = 0.1) -> Parametrisation:
    """EpiCoDe (2506.03489): L_ep + strength (L_ep - L_ft); the first network holds the extrapolated weights."""
    return Parametrisation((1.0 + strength, -strength), a)


def dera(strength: float = 1.0) -> Parametrisation:
    """Decoding-time realignment: strength z_aligned + (1 - strength) z_base, without a head."""
    return Parametrisation((strength, 1.0 - strength), 0.0)


def alignment_aware(mask: float = 0.1) -> Parametrisation:
    """Alignment-aware decoding (2509.26169): the best log-ratio in the head, greedily."""
    return Parametrisation((1.0, -1.0), mask, temperature=0.0)


def guidance(weight: float = 0.6, a: float = 0.1) -> Parametrisation:
    """Contrast against a blended reference network (2508.00319's idea): log p_aligned - weight log p_reference."""
    return Parametrisation((1.0, -weight), a)


def proxy_tuning(scale: float = 1.0, a: float = 0.0) -> Parametrisation:
    """DExperts, proxy-tuning and EFT (2401.08565): z_strong + scale (z_aligned - z_base); `a` cuts on the strong."""
    return Parametrisation((1.0, scale, -scale), a)


def plain() -> Parametrisation:
    """Ordinary sampling from one network."""
    return Parametrisation((1.0,), 0.0)


METHODS: Mapping[str, Callable[..., Parametrisation]] = {
    "aad": alignment_aware,
    "cong": cong,
    "contrastive-decoding": contrastive_decoding,
    "dera": dera,
    "epicode": epicode,
    "guidance": guidance,
    "obrien-lewis": obrien_lewis,
    "plain": plain,
    "proxy-tuning": proxy_tuning,
}


def parametrise(method: str, **parameters: float) -> Parametrisation:
    """The settings of a method given by name with its own parameters."""
    if method not in METHODS:
        close = difflib.get_close_matches(method, METHODS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown method {method!r}; the nearest known one is {close!r} (all: {', '.join(METHODS)})")
    known = inspect.signature(METHODS[method]).parameters
    for name in parameters:
        if name not in known:
            raise ConfigError(f"method {method!r} has no parameter {name!r}; it takes: {', '.join(known) or 'none'}")
    return METHODS[method](**parameters)


def equivalent_alpha(weights: tuple[float, ...], temperature: float = 1.0) -> tuple[float, float]:
    """ConG's (alpha, temperature) that draws exactly like these two weights at this temperature.

    w_0 la + w_1 lb = w_0 (la + (w_1 / w_0) lb), so alpha = 1 + w_1 / w_0 at temperature / w_0.
    """
    if len(weights) != 2 or weights[0] <= 0:
        raise ConfigError(f"weights {weights} have no alpha: it takes two weights, the first above 0")
    return 1.0 + weights[1] / weights[0], temperature / weights[0]
