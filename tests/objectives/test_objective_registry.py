"""Objectives by name with their parameters, and what is answered to wrong ones."""

import dataclasses
from typing import Any

import pytest

from cong.errors import ConfigError
from cong.objectives import DPO, OBJECTIVES, WSPO, objective, objective_parameters


def test_a_name_and_its_parameters_make_a_value() -> None:
    assert objective("dpo", beta=0.5, label_smoothing=0.1) == DPO(beta=0.5, label_smoothing=0.1)
    assert objective("wspo") == WSPO()
    assert objective("wspo", clip=None) == WSPO(clip=None)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_defaults_make_the_method_they_describe(name: str) -> None:
    made: Any = objective(name, **objective_parameters(name))
    assert made == OBJECTIVES[name]()
    assert made.name == name
    assert dataclasses.asdict(made) == objective_parameters(name)


def test_the_names_are_these() -> None:
    assert sorted(OBJECTIVES) == [
        "adapt_conf",
        "aux_conf",
        "aux_conf_released",
        "cw_dpo",
        "dpo",
        "sft",
        "soft_labels",
        "wspo",
    ]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"objective 'dop' is not known: did you mean 'dpo'\?"):
        objective("dop")
    with pytest.raises(ConfigError, match=r"objective 'dop' is not known"):
        objective_parameters("dop")


def test_an_unknown_parameter_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no parameter 'label_smooth': did you mean 'label_smoothing'\?"):
        objective("dpo", label_smooth=0.1)
    with pytest.raises(ConfigError, match="no parameter 'zzz': Known: mean_over"):
        objective("sft", zzz=1)


@pytest.mark.parametrize(
    ("name", "parameter", "value", "answer"),
    [
        ("dpo", "beta", 0.0, "beta = 0.0 is out of bounds: it has to be above 0; leave it out for the default 0.1"),
        ("dpo", "beta", "1e-3", "beta = '1e-3' is not a finite number"),
        ("dpo", "beta", True, "beta = True is not a finite number"),
        ("dpo", "beta", float("nan"), "beta = nan is not a finite number"),
        ("dpo", "beta", None, "beta = None is not a finite number"),
        ("dpo", "label_smoothing", 0.5, "it has to be at least 0 and below 0.5"),
        ("cw_dpo", "weak_beta", -1, "weak_beta = -1 is out of bounds"),
        ("cw_dpo", "beta", -1, "objective 'cw_dpo': beta = -1 is out of bounds"),
        ("wspo", "gamma", 0, "gamma = 0 is out of bounds"),
        ("wspo", "clip", 0, "clip = 0 is out of bounds: it has to be above 0; leave it out for the default None"),
        ("aux_conf", "highest", 1.5, "it has to be at least 0 and at most 1"),
        ("aux_conf", "warmup", -0.1, "warmup = -0.1 is out of bounds"),
        ("aux_conf_released", "warmup", 2, "warmup = 2 is out of bounds"),
        ("adapt_conf", "temperature", 0, "temperature = 0 is out of bounds"),
        ("adapt_conf", "direction", "inverse", r"direction = 'inverse' is not a choice (did you mean 'inverted'?"),
        ("soft_labels", "direction", "backward", "is not a choice"),
        ("soft_labels", "floor", 0.0, "it has to be below 0"),
        ("sft", "mean_over", "token", "did you mean 'tokens'?"),
        ("sft", "mean_over", 3, "mean_over = 3 is not a choice"),
    ],
)
def test_a_wrong_value_is_answered_with_value_bound_and_remedy(
    name: str, parameter: str, value: Any, answer: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        objective(name, **{parameter: value})
    assert answer in str(refusal.value)
    assert name in str(refusal.value)
