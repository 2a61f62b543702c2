"""Objectives by name: a run names its method and its parameters, and gets a value that the trainer calls.

Adding a method is one file with a frozen dataclass and one entry here; a trainer also takes any other `Objective`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cong.errors import ConfigError
from cong.objectives.confidence import AdaptConf, AuxConf, AuxConfReleased
from cong.objectives.dpo import DPO, ConfidenceWeightedDPO
from cong.objectives.objective import Objective
from cong.objectives.parameters import nearest
from cong.objectives.sft import SFT
from cong.objectives.soft_labels import SoftLabels
from cong.objectives.wspo import WSPO

OBJECTIVES: Mapping[str, type[Objective]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (SFT, DPO, ConfidenceWeightedDPO, WSPO, AuxConf, AuxConfReleased, AdaptConf, SoftLabels)
    }
)


def objective_parameters(name: str) -> dict[str, float | str | None]:
    """The parameters of a method with their defaults."""
    if name not in OBJECTIVES:
        raise ConfigError(f"objective {name!r} is not known: {nearest(name, OBJECTIVES.keys())}")
    made: Any = OBJECTIVES[name]()
    return dataclasses.asdict(made)


def objective(name: str, /, **parameters: float | str | None) -> Objective:
    """The method of that name with its parameters; those left out take their defaults."""
    known = objective_parameters(name)
    for parameter in parameters:
        if parameter not in known:
            raise ConfigError(f"objective {name!r} has no parameter {parameter!r}: {nearest(parameter, known.keys())}")
    kind: Any = OBJECTIVES[name]
    made: Objective = kind(**parameters)
    return made
