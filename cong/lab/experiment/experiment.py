"""The experiment over several seeds: each seed's result is kept as soon as it is done, so a stopped run continues.

What is measured is decided in `measure`, what is claimed in `claims`.
"""

import logging
from pathlib import Path

from cong.config.lab import LabConfig
from cong.lab.bases import get_base
from cong.lab.cache import Cache, Recipe, digest_of_modules
from cong.lab.experiment.claims import Claim, compared_sets, lab_claims
from cong.lab.experiment.measure import measure_seed, num_pieces
from cong.lab.names import temperature_name
from cong.lab.results import ExperimentResult, SeedResult
from cong.lab.software import software_versions
from cong.telemetry import progress

RESULT_FILE = "result.json"

_RECIPE_MODULES = tuple(
    [f"cong.lab.{name}" for name in ("world", "networks", "trainer", "pretraining", "sampler", "answers")]
    + [f"cong.lab.{name}" for name in ("stages", "decodings", "names", "summaries", "results", "experiment.measure")]
    + [f"cong.objectives.{name}" for name in ("logprobs", "objective", "responses", "sft", "dpo", "wspo", "confidence")]
    + [f"cong.decoding.{name}" for name in ("contrast", "draw", "rules", "step")]
    + ["cong.statistics"]
)

_log = logging.getLogger(__name__)


def claims_of(config: LabConfig) -> list[Claim]:
    """What is claimed under a configuration."""
    return lab_claims(temperature_name(config.evaluation.temperatures[0]), config.rivals.wspo_gammas)


def seed_recipe(config: LabConfig) -> Recipe:
    """Everything that decides one seed's result."""
    settings = {**config.model_dump(mode="json"), "compared": compared_sets(claims_of(config))}
    return Recipe("lab_seed", settings, digest_of_modules(_RECIPE_MODULES))


def _make_seed(config: LabConfig, cache: Cache, folder: Path) -> None:
    base, strong = get_base(config, "weak", cache), get_base(config, "strong", cache)
    with progress(f"seed {config.seed}: decodings and models", num_pieces(config), unit="pieces") as bar:
        result = measure_seed(config, base, strong, compared_sets(claims_of(config)), bar)
    (folder / RESULT_FILE).write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")


def seed_result(config: LabConfig, cache: Cache) -> SeedResult:
    """One seed's result, measured now unless it is known."""
    recipe = seed_recipe(config)
    if cache.has(recipe):
        _log.info("the result of seed %d is known", config.seed)
    folder = cache.get(recipe, lambda folder: _make_seed(config, cache, folder))
    return SeedResult.model_validate_json((folder / RESULT_FILE).read_text(encoding="utf-8"))


def run_experiment(config: LabConfig, cache: Cache, num_seeds: int) -> ExperimentResult:
    """Measure `num_seeds` seeds, from the configuration's own seed upwards."""
    seeds = [
        seed_result(config.model_copy(update={"seed": config.seed + offset}), cache) for offset in range(num_seeds)
    ]
    return ExperimentResult(settings=config.model_dump(mode="json"), software=software_versions(), seeds=tuple(seeds))
