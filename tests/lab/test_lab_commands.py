"""`cong lab` from end to end in a world that is scaled down until nothing in it can be learned."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from cong.cli import main
from cong.config import RunConfig, load_config
from cong.lab.bases import SHIPPED, SIZES, base_recipe
from cong.lab.cache import problem_with
from cong.lab.decodings import ALIGNED
from cong.lab.experiment.claims import is_pair_sound, judge_claims
from cong.lab.experiment.experiment import claims_of
from cong.lab.experiment.page import experiment_page
from cong.lab.experiment.tables import Seeds, claims_table, weak_table
from cong.lab.networks import load_network
from cong.lab.results import ExperimentResult

SCALED_DOWN = [
    "num_threads=1",
    "lab.num_training_prompts=24",
    "lab.max_response_tokens=8",
    "lab.weak.network.hidden_size=16",
    "lab.weak.network.mlp_size=16",
    "lab.weak.network.num_layers=1",
    "lab.weak.pretraining.num_documents=128",
    "lab.strong.network.hidden_size=16",
    "lab.strong.network.mlp_size=16",
    "lab.strong.network.num_layers=1",
    "lab.strong.pretraining.num_documents=128",
    "lab.alignment.num_pairs=32",
    "lab.evaluation.num_prompts=12",
    "lab.evaluation.temperatures=[1.0, 0.0]",
    "lab.evaluation.alphas=[0.4, 1.0]",
    "lab.evaluation.alignment_betas=[1.0]",
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a scaled-down configuration; networks made in it are cached there."""
    folder = tmp_path_factory.mktemp("lab")
    config = load_config(RunConfig, overrides=SCALED_DOWN).model_copy(
        update={"cache_dir": folder / "cache", "output_dir": folder / "out"}
    )
    (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    handlers, num_threads = list(logging.getLogger().handlers), torch.get_num_threads()
    yield folder
    logging.getLogger().handlers[:] = handlers
    torch.set_num_threads(num_threads)


def lab(workplace: Path, *arguments: str) -> int:
    return main(["lab", arguments[0], "--config", str(workplace / "run.yaml"), *arguments[1:]])


def test_experiment_writes_results_page_and_report_and_continues_from_what_is_done(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, page = workplace / "results" / "lab.json", workplace / "docs" / "lab.md"
    assert lab(workplace, "experiment", "--seeds", "2", "--json", str(stored), "--docs", str(page)) == 0
    first = capsys.readouterr()
    result = ExperimentResult.model_validate_json(stored.read_text())
    assert [seed.seed for seed in result.seeds] == [0, 1]
    assert "ConG" in result.seeds[0].models
    assert 0.0 <= result.seeds[0].weak["aligned T=1"].reward.mean <= 1.0
    assert "Claims with a margin that must be met" in first.out
    assert "does not hold: the ceiling is near 1" in first.out
    text = page.read_text()
    assert "# The lab's results" in text
    assert "the ceiling is near 1" in text
    figures = re.findall(r"\]\((lab-figures/[^)]+)\)", text)
    assert len(figures) == 2
    assert all((page.parent / figure).is_file() for figure in figures)
    assert (workplace / "out" / "experiment.html").read_text().startswith("<!")

    before = stored.read_bytes()
    assert lab(workplace, "experiment", "--seeds", "2", "--json", str(stored)) == 0
    assert stored.read_bytes() == before
    assert "pretraining" not in capsys.readouterr().err


def test_a_failed_alignment_is_said_and_its_seed_stays_in_the_tables(workplace: Path) -> None:
    stored = workplace / "both.json"
    assert lab(workplace, "experiment", "--seeds", "2", "--json", str(stored)) == 0
    result = ExperimentResult.model_validate_json(stored.read_text())
    shares = {0: 0.01, 1: 0.9}
    mixed = tuple(
        seed.model_copy(
            update={"weak": seed.weak | {ALIGNED: seed.weak[ALIGNED].model_copy(update={"stray_share": share})}}
        )
        for seed, share in zip(result.seeds, shares.values(), strict=True)
    )
    assert [is_pair_sound(seed) for seed in mixed] == [True, False]
    seeds = Seeds(mixed)
    verdicts = judge_claims(claims_of(load_config(RunConfig, [workplace / "run.yaml"]).lab), mixed)
    page = experiment_page(result.model_copy(update={"seeds": mixed}), verdicts)
    assert "On seed 1 the weak model's alignment itself failed: 90%" in page.summary
    table = weak_table(seeds)
    where_aligned = [column.name for column in table.columns].index("where aligned")
    for row, name in zip(table.rows, mixed[0].weak, strict=True):
        assert row[where_aligned] == pytest.approx(mixed[0].weak[name].reward.mean)
    assert "seed 1, not aligned [95 %]" in [column.name for column in claims_table(verdicts, seeds, True).columns]
    assert Seeds(mixed[1:]).sound == mixed[1:]
    assert not Seeds(mixed[:1]).is_mixed


def test_demo_says_where_everything_lies(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = workplace / "demo"
    assert lab(workplace, "demo", "--output-dir", str(out)) == 0
    shown = capsys.readouterr().out
    assert str(out / "report.html") in shown.replace("\n", "")
    for name in ("weak base", "weak aligned", "strong base", "WeakSFT", "ConG-S", "ConG", "ceiling"):
        assert name in shown
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r"""(src|href)=["']https?:""", page), "the page loads something from elsewhere"
    numbers = json.loads((out / "results.json").read_text())
    assert set(numbers["models"]) >= {"ConG-S", "ConG", "WeakSFT", "strong base"}
    resolved = load_config(RunConfig, [out / "config.yaml"])
    assert resolved.lab.num_training_prompts == 24
    assert resolved.output_dir == out
    assert load_network(out / "models" / "cong").num_parameters() > 0


def test_sample_shows_the_pair_side_by_side(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab(workplace, "sample", "--num-prompts", "3") == 0
    shown = capsys.readouterr().out
    for column in ("prompt", "ideal", "base", "aligned", "contrastive"):
        assert column in shown
    assert len(re.findall(r"[MOXS][a-j]{5}=", shown)) == 3


def test_the_same_command_gives_the_same_samples(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for _ in range(2):
        assert lab(workplace, "sample", "--num-prompts", "2") == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


@pytest.mark.parametrize("action", ["demo", "sample", "experiment", "build"])
def test_a_dry_run_prints_the_configuration_and_does_nothing(
    action: str, workplace: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert lab(workplace, action, "--dry-run", "--set", f"output_dir={tmp_path / 'none'}") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert RunConfig.model_validate(printed).lab.num_training_prompts == 24
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment", "--seeds", "0"], "--seeds is 0; give at least 1"),
        (["sample", "--num-prompts", "0"], "--num-prompts is 0; give at least 1"),
        (["build", "--set", "lab.seed=3"], "lab.seed is 3"),
        (["demo", "--set", "lab.alfa=3"], "lab.contrast.alpha"),
    ],
)
def test_what_a_user_got_wrong_is_one_line(
    arguments: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab(workplace, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("size", SIZES)
def test_shipped_models_are_sound_and_made_by_the_recipe_in_force(size: str) -> None:
    recipe = base_recipe(RunConfig().lab, size)  # type: ignore[arg-type]
    folder = SHIPPED / recipe.kind
    assert problem_with(folder, recipe) is None, "rebuild them: cong lab build"
    assert load_network(folder).num_parameters() in (99_648, 335_520)


def test_shipped_models_are_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 8e6


def test_settings_outside_the_recipe_do_not_change_it_and_those_inside_do() -> None:
    lab_config = RunConfig().lab
    key = base_recipe(lab_config, "weak").key
    other = load_config(RunConfig, overrides=["lab.num_training_prompts=7", "lab.strong.network.num_layers=1"]).lab
    assert base_recipe(other, "weak").key == key
    changed = load_config(RunConfig, overrides=["lab.weak.pretraining.learning_rate=0.003"]).lab
    assert base_recipe(changed, "weak").key != key
    assert base_recipe(lab_config.model_copy(update={"seed": 1}), "weak").key != key


def test_the_shipped_configuration_is_the_default() -> None:
    shipped = Path(__file__).parent.parent.parent / "configs" / "lab.yaml"
    assert load_config(RunConfig, [shipped]) == RunConfig()


@pytest.mark.parametrize("action", ["demo", "experiment"])
def test_a_missing_report_package_is_said_before_anything_is_made(
    action: str, workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert lab(workplace, action) == 2
    shown = capsys.readouterr()
    assert "'.[report]'" in shown.err
    assert "aligning" not in shown.err
