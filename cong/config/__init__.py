"""Every setting of every program: frozen typed models, read from YAML files first and `--set a.b=c` last.

Knows pydantic and YAML only. Nothing here loads a model, opens a stream, or is filled in later by a program: what is
computed at start is a separate object with its own name.
"""

from cong.config.base import Settings
from cong.config.engine import EngineConfig
from cong.config.evaluation import EvaluationConfig
from cong.config.lab import LabConfig
from cong.config.loading import dump_config, load_config
from cong.config.models import ModelsConfig, NetworkConfig
from cong.config.service import ServiceConfig
from cong.config.settings import RunConfig
from cong.config.train import TrainConfig

__all__ = [
    "EngineConfig",
    "EvaluationConfig",
    "LabConfig",
    "ModelsConfig",
    "NetworkConfig",
    "RunConfig",
    "ServiceConfig",
    "Settings",
    "TrainConfig",
    "dump_config",
    "load_config",
]
