"""The judges that a configuration names, ready to measure; what is wrong with one is found here, before any work."""

from cong.config.engine import EngineConfig
from cong.config.evaluation import EvaluationConfig, ImplicitJudge, JudgeConfig, ProgramJudge
from cong.config.models import ModelsConfig
from cong.errors import ConfigError
from cong.evaluation.judges.implicit import ImplicitReward
from cong.evaluation.judges.program import GoldProgram
from cong.evaluation.judges.reward_model import RewardModelScore
from cong.evaluation.judging import Judge


def open_judge(
    name: str, settings: JudgeConfig, models: ModelsConfig, engine: EngineConfig, shown_prompts: frozenset[str]
) -> Judge:
    """One judge; networks are fingerprinted, and loaded only when something has to be measured."""
    if isinstance(settings, ProgramJudge):
        return GoldProgram(name, settings)
    if isinstance(settings, ImplicitJudge):
        return ImplicitReward(name, settings, models, engine, shown_prompts)
    return RewardModelScore(name, settings, models)


def open_judges(
    settings: EvaluationConfig, models: ModelsConfig, engine: EngineConfig, shown_prompts: frozenset[str]
) -> list[Judge]:
    """Every judge, the one that results are about first."""
    if not settings.judges:
        raise ConfigError("evaluation.judges is empty; name at least one")
    return [open_judge(name, judge, models, engine, shown_prompts) for name, judge in settings.judges.items()]
