"""The whole configuration of a run; each section belongs to the program that reads it."""

from pathlib import Path

from pydantic import Field

from cong.config.base import Settings
from cong.config.engine import EngineConfig
from cong.config.estimate import EstimateConfig
from cong.config.evaluation import EvaluationConfig
from cong.config.jobs import SamplingJobConfig, TrainingJobConfig
from cong.config.lab import LabConfig
from cong.config.models import ModelsConfig
from cong.config.pipeline import PipelineConfig
from cong.config.service import ServiceConfig
from cong.config.stream import StreamConfig
from cong.config.train import TrainConfig
from cong.schemas import SamplingParameters


class RunConfig(Settings):
    """One file describes one run, for every program that takes part in it."""

    output_dir: Path = Path("runs/lab")
    """Everything the run writes for people lies here, its resolved configuration included."""
    cache_dir: Path = Path(".cache/cong")
    """Made things that can be made again; entries are keyed by everything they were made from."""
    num_threads: int = Field(default=0, ge=0)
    """Threads of one process for tensor work; 0 = as many as there are cores."""
    models: ModelsConfig = ModelsConfig()
    sampling: SamplingParameters = SamplingParameters()
    """How samples are drawn unless a request says otherwise."""
    engine: EngineConfig = EngineConfig()
    lab: LabConfig = LabConfig()
    stream: StreamConfig = StreamConfig()
    train: TrainConfig = TrainConfig()
    service: ServiceConfig = ServiceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sampling_job: SamplingJobConfig = SamplingJobConfig()
    training_job: TrainingJobConfig = TrainingJobConfig()
    pipeline: PipelineConfig = PipelineConfig()
    estimate: EstimateConfig = EstimateConfig()
