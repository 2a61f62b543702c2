"""The run files of real pairs: their stages fit together, say what the paper's runs said, and refuse misspelt keys."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from cong.cli import main
from cong.config import RunConfig, load_config
from cong.config.loading import check
from cong.errors import ConfigError
from cong.estimate import SamplingWork, TrainingWork, estimate_sampling, estimate_training, machines
from cong.estimate.planned import planned_sampling, planned_training
from cong.objectives import objective
from cong.pipeline import Stage
from cong.pipeline.board import stages_of
from cong.pipeline.forecast import Outlook
from cong.pipeline.given import Given
from cong.pipeline.recipe import train_settings
from jobs.planning import require_backend

from ..cluster.shipped import key_paths, one, renamed
from ..cluster.test_keys import is_refused_by_name, misspelt

FOLDER = Path(__file__).parent.parent.parent / "configs"
PAIRS = sorted(path.parent for path in FOLDER.glob("*/run.yaml"))
STAGES = ("align", "sft", "own", "dpo", "evaluate")
FILES = sorted(FOLDER.glob("**/*.yaml"))
every_pair = pytest.mark.parametrize("folder", PAIRS, ids=lambda path: path.name)

OWN_NAMES = ("candidates", "judges", "parameters", "resources_per_worker")
"""Below these stand names of the user's, of a method or of a cluster; other tests look at the latter two."""


def stage(folder: Path, name: str = "") -> RunConfig:
    """A stage as its job reads it."""
    return load_config(RunConfig, [folder / "run.yaml", *([folder / f"{name}.yaml"] if name else [])])


def test_every_pair_has_every_stage() -> None:
    assert [folder.name for folder in PAIRS] == ["llama-3.2-3b-to-3-8b", "qwen2.5-3b-self", "qwen2.5-3b-to-7b"]
    for folder in PAIRS:
        own = {"pipeline"} if folder.name.endswith("-self") else {"pipeline", "rivals"}
        assert {path.stem for path in folder.iterdir()} == {"run", *STAGES} | own


@every_pair
def test_each_stage_takes_what_the_one_before_it_makes(folder: Path) -> None:
    pair, align, sft, own, dpo, judged = stage(folder), *(stage(folder, name) for name in STAGES)
    assert align.train.network == pair.models.base
    assert pair.models.aligned.source == f"{align.output_dir}/model"
    assert sft.stream.location == pair.stream.location
    assert sft.stream.read.filter.kinds == ("contrastive",)
    first = f"{sft.output_dir}/model"
    assert (own.models.strong.source, own.models.aligned.source, own.models.base.source) == (first, "", "")
    assert own.sampling.kind == "plain"
    assert len(own.sampling.weights) == 1
    assert own.sampling_job.prompts == pair.sampling_job.prompts
    assert dpo.train.network.source == first
    assert dpo.train.data.chosen.location == pair.stream.location
    assert dpo.train.data.rejected.location == own.stream.location != pair.stream.location
    sources = [candidate.source for candidate in judged.evaluation.candidates.values()]
    assert sources == [sft.train.network.source, first, f"{dpo.output_dir}/model"]
    folders = [run.output_dir for run in (align, sft, dpo, judged)]
    assert len(set(folders)) == len(folders)
    is_self = folder.name.endswith("-self")
    assert (sft.train.network == pair.models.base) is is_self


@every_pair
def test_decoding_is_the_papers(folder: Path) -> None:
    sampling = stage(folder).sampling
    assert sampling.alpha == pytest.approx(0.4)
    assert (sampling.head_lambda, sampling.temperature, sampling.top_p, sampling.top_k) == (0.1, 0.8, 0.95, 0)
    assert (sampling.repetition_penalty, sampling.penalty_rule, sampling.max_tokens) == (1.2, "reference", 2048)
    own = stage(folder, "own").sampling
    assert (own.temperature, own.top_p, own.seed, own.max_tokens) == (0.8, 0.95, 50, 2048)
    assert (own.repetition_penalty, own.head_lambda) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "stage_name", "expected"),
    [
        (name, "align", ("dpo", {"beta": 0.1}, 8e-7, 1, 64))
        for name in ("llama-3.2-3b-to-3-8b", "qwen2.5-3b-self", "qwen2.5-3b-to-7b")
    ]
    + [
        ("llama-3.2-3b-to-3-8b", "sft", ("sft", {}, 1e-5, 2, 64)),
        ("qwen2.5-3b-to-7b", "sft", ("sft", {}, 1e-5, 2, 64)),
        ("qwen2.5-3b-self", "sft", ("sft", {}, 1e-5, 2, 128)),
        ("llama-3.2-3b-to-3-8b", "dpo", ("dpo", {"beta": 0.5}, 6e-7, 1, 64)),
        ("qwen2.5-3b-to-7b", "dpo", ("dpo", {"beta": 0.5}, 6e-7, 1, 64)),
        ("qwen2.5-3b-self", "dpo", ("dpo", {"beta": 0.5}, 8e-7, 1, 64)),
    ],
)
def test_training_is_the_papers(name: str, stage_name: str, expected: tuple[Any, ...]) -> None:
    train = stage(FOLDER / name, stage_name).train
    assert (
        train.objective.name,
        train.objective.parameters,
        train.optimizer.learning_rate,
        train.num_epochs,
        train.batches.batch_size,
    ) == expected
    assert (train.schedule.shape, train.schedule.warmup_share) == ("cosine", 0.1)
    assert (train.batches.max_example_tokens, train.precision) == (2048, "bfloat16")
    assert train.evaluation.held_out_share == (0.01 if stage_name == "sft" else 0.0)


@every_pair
@pytest.mark.parametrize("stage_name", ["align", "sft", "dpo"])
def test_a_training_stage_fits_the_shipped_clusters_and_their_devices(folder: Path, stage_name: str) -> None:
    config = stage(folder, stage_name)
    require_backend(config)
    job = config.training_job
    for name in ("cluster.yaml", "deploy/cluster-gcp.yaml"):
        offered = one(name)["available_node_types"]["trainer"]["resources"]
        assert all(offered[resource] >= job.num_workers * amount for resource, amount in job.resources.items())
    strong = Path(stage(folder, "sft").train.network.source).name
    work = TrainingWork(60_000, 200, 400, like=strong if stage_name == "dpo" else "")
    estimate = estimate_training(config, work, machines("A100-80GB", job.num_workers))
    assert estimate.does_fit
    assert estimate.hours < 12


PRODUCTS = {"align": "align-weak", "sft": "cong-s", "dpo": "cong"}
"""Stage files, and the stages of a pipeline that do the same."""


def pipeline_stages(folder: Path, *more: str) -> dict[str, Stage]:
    """The stages of a pipeline file by what they are in `PRODUCTS` and the book; the self-alignment's among them."""
    config = pipeline(folder, *more)
    return {each.name.removeprefix("self-"): each for each in stages_of(config, Given(config).names)}


def pipeline(folder: Path, *more: str) -> RunConfig:
    """A whole pipeline, as its job reads it."""
    return load_config(RunConfig, [folder / f"{name}.yaml" for name in ("pipeline", *more)])


@every_pair
def test_a_pipeline_does_what_its_stage_files_do(folder: Path) -> None:
    whole, stages = pipeline(folder), pipeline_stages(folder)
    require_backend(whole)
    for name, product in PRODUCTS.items():
        by_hand, by_pipeline = stage(folder, name), train_settings(whole, stages[product])
        for setting in (
            "objective",
            "num_epochs",
            "batches",
            "optimizer",
            "schedule",
            "precision",
            "seed",
            "deepspeed",
        ):
            assert getattr(by_pipeline, setting) == getattr(by_hand.train, setting), f"{product}: {setting}"
        assert whole.training_job == by_hand.training_job
    assert whole.sampling == stage(folder).sampling
    own = stage(folder, "own").sampling
    assert whole.pipeline.own_sampling == own.model_copy(update={"penalty_rule": "additive"})
    judged = stage(folder, "evaluate").evaluation
    assert (whole.evaluation.prompts, whole.evaluation.judges) == (judged.prompts, judged.judges)
    assert whole.stream.read.shuffle_rows == stage(folder, "sft").stream.read.shuffle_rows


@pytest.mark.parametrize("name", ["llama-3.2-3b-to-3-8b", "qwen2.5-3b-to-7b"])
def test_the_rivals_are_the_published_ones_and_share_what_is_made(name: str) -> None:
    stages = pipeline_stages(FOLDER / name, "rivals")
    config = pipeline(FOLDER / name, "rivals")
    assert {"cong", "weak-sft", "aux-conf", "wspo", "alpha-sweep"} <= stages.keys()
    wspo, aux = (train_settings(config, stages[each]) for each in ("wspo", "aux-conf"))
    assert (wspo.objective.name, wspo.objective.parameters) == ("wspo", {"gamma": 0.1})
    assert (wspo.optimizer.learning_rate, wspo.num_epochs) == (1e-5, 1)
    objective(aux.objective.name, **aux.objective.parameters)
    assert {stages[each].inputs["samples"] for each in ("weak-sft", "aux-conf", "wspo")} == {"plain-samples"}
    assert pipeline(FOLDER / name).output_dir == config.output_dir


@every_pair
def test_the_estimate_of_a_pipeline_is_that_of_its_stages_by_hand(folder: Path) -> None:
    found = {each.stage.name.removeprefix("self-"): each for each in Outlook.of(pipeline(folder)).all()}
    for name, product in PRODUCTS.items():
        (estimate,) = found[product].estimates
        assert estimate == planned_training(stage(folder, name)), product
    (drawn,) = found["sample"].estimates
    assert drawn == planned_sampling(stage(folder), is_served=False)


@every_pair
@pytest.mark.parametrize(
    ("command", "files", "told"),
    [
        (["pipeline", "run"], ["pipeline"], "About what the stages for"),
        (["train"], ["run", "sft"], "Training on 8 x A100-80GB"),
        (["train"], ["run", "dpo"], "fits into a device"),
        (["sample", "--prompts", "data/prompts.jsonl", "--url", "http://x"], ["run"], "Sampling on 8 x L40S"),
        (["sample", "--prompts", "data/prompts.jsonl", "--out", "x"], ["run", "own"], "Sampling on 1 x A100-80GB"),
    ],
)
def test_a_dry_run_needs_nothing_and_tells_hours_memory_and_disk(
    folder: Path,
    command: list[str],
    files: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [folder / f"{name}.yaml" for name in files]
    assert main([*command, "--dry-run", *(f"--config={path}" for path in paths)]) == 0
    out = capsys.readouterr().out
    comments = "".join(line for line in out.splitlines() if line.startswith("#"))
    for word in (told, "device hours", "GB", "disk"):
        assert word in comments
    (tmp_path / "shown.yaml").write_text(out)
    assert load_config(RunConfig, [tmp_path / "shown.yaml"]) == load_config(RunConfig, paths)
    assert not (tmp_path / "runs").exists()


@every_pair
@pytest.mark.parametrize("accelerator", ["L4", "L40S"])
def test_a_pair_fits_the_shipped_clusters_samplers(folder: Path, accelerator: str) -> None:
    estimate = estimate_sampling(stage(folder), SamplingWork(60_000, new_tokens=400), machines(accelerator))
    assert estimate.num_running >= 16


def test_the_command_checks_a_stage_over_its_pair(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(PAIRS[0] / "run.yaml"), str(PAIRS[0] / "dpo.yaml")]
    assert main(["config", "check", *files]) == 0
    assert main(["config", "check", *files, "--set", "train.objective.parameters.bta=0.1"]) == 2
    assert "has no parameter 'bta'" in capsys.readouterr().err


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_every_key_misspelt_by_a_letter_is_refused_with_its_name_and_the_right_one(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    generator = random.Random(0)
    for place in key_paths(content):
        if place[-2:-1] and place[-2] in OWN_NAMES:
            continue
        for wrong in misspelt(str(place[-1]), generator):
            with pytest.raises(ConfigError) as caught:
                check(RunConfig, renamed(content, place, wrong), path.name)
            right = str(place[-1])
            # Without the key that says which kind of section it is, that key itself is asked for.
            assert any(
                is_refused_by_name(line, wrong, right) or f"{right} is None" in line
                for line in str(caught.value).splitlines()
                if "'" in line
            ), caught.value
