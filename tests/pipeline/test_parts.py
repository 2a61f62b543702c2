"""The parts alone: the book of stages, order of records, words for changes, and the command line."""

import random
from pathlib import Path

import pytest

from cong.cli import main
from cong.config import RunConfig, dump_config
from cong.errors import ConfigError
from cong.lab.records import synthetic_record
from cong.pipeline import METHODS, STAGES
from cong.pipeline.book import GAINS, needed, through_text
from cong.pipeline.importing import _of_file
from cong.pipeline.ordering import InOrder, place_of
from cong.pipeline.recipe import changes
from tests.pipeline.conftest import Configure

GIVEN = {"weak-base", "strong-base", "prompts", "preferences", "held-out", "gold-answers"}


def test_every_method_can_be_made_from_what_may_be_given() -> None:
    for method in METHODS.values():
        stages = needed(STAGES, method.candidates.values(), GIVEN)
        known = set(GIVEN)
        for stage in stages:
            assert known >= set(stage.inputs.values()), f"{stage.name} runs before what it takes"
            known.add(stage.product)
        assert known >= set(method.candidates.values())


def test_names_are_unique_and_gains_are_of_candidates() -> None:
    assert len({stage.name for stage in STAGES}) == len({stage.product for stage in STAGES}) == len(STAGES)
    candidates = {name for method in METHODS.values() for name in method.candidates} | {"weak aligned"}
    assert {name for pair in GAINS for name in pair} <= candidates


def test_cards_call_networks_as_tables_do(undisturbed: RunConfig) -> None:
    cards = {path.parts[-4]: path.read_text() for path in undisturbed.output_dir.glob("stages/*/*/model/README.md")}
    titles = {name: next(line for line in card.splitlines() if line.startswith("# ")) for name, card in cards.items()}
    assert titles == {
        "align-weak": "# weak aligned (weak-base)",
        "cong-s": "# ConG-S (strong-base)",
        "cong": "# ConG (strong-base)",
        "weak-sft": "# WeakSFT (strong-base)",
    }
    assert "| network | strong-base |" in cards["cong-s"]
    assert "| network | ConG-S (strong-base) |" in cards["cong"]


def test_an_aligned_model_that_is_given_is_not_made() -> None:
    names = [stage.name for stage in needed(STAGES, ["cong"], {*GIVEN, "weak-aligned"})]
    assert names == ["sample", "cong-s", "own-samples", "cong"]


def test_stages_that_methods_share_run_once() -> None:
    names = [stage.name for stage in needed(STAGES, ["weak-sft", "aux-conf", "wspo"], GIVEN)]
    assert names == ["align-weak", "plain-samples", "weak-sft", "aux-conf", "wspo"]


def test_text_goes_between_samples_and_a_strong_model_of_other_tokens_alone() -> None:
    stages = {stage.name: stage for stage in needed(through_text(STAGES, "strong-base"), ["cong", "self-cong"], GIVEN)}
    assert stages["cong-s"].inputs["samples"] == stages["cong"].inputs["chosen"] == "sample-text"
    assert stages["self-cong-s"].inputs["samples"] == stages["self-cong"].inputs["chosen"] == "sample"
    assert stages["cong"].inputs["rejected"] == "own-samples"


def test_what_is_missing_is_named_with_its_remedy() -> None:
    with pytest.raises(ConfigError, match=r"cong-s needs strong-base.*set models.strong.source"):
        needed(STAGES, ["cong"], GIVEN - {"strong-base"})


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"prompt": "a"}', '{"prompt": "a", "answer": 1}', pytest.param("[" * 100_000, id="deep")]
)
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f'{{"prompt": "a", "answer": "b"}}\n{line}\n')
    with pytest.raises(ConfigError, match=r"answers\.jsonl:2 is no answer .*; each line needs prompt"):
        list(_of_file(path))


@pytest.mark.parametrize("seed", range(5))
def test_records_are_handed_on_in_order_whatever_comes_first(seed: int) -> None:
    records = [synthetic_record(number) for number in range(20)]
    places = [place_of(each) for each in records]
    assert len(set(places)) == len(places)
    out: list[str] = []
    order = InOrder(places, lambda each: out.append(each.key))
    shuffled = records.copy()
    random.Random(seed).shuffle(shuffled)
    lost = {places[3], places[19]}
    for each in shuffled:
        done = len(out)
        if place_of(each) in lost:
            order.give_up(place_of(each))
        else:
            order.put(each)
        assert out[:done] == [r.key for r, place in zip(records, places, strict=True) if place not in lost][:done]
    assert out == [r.key for r, place in zip(records, places, strict=True) if place not in lost]
    assert order.num_held == 0
    assert order.awaited is None


def test_changes_are_named_with_both_values() -> None:
    before = {"input.sample": "a", "sampling.alpha": 0.4, "train.lora": {"rank": 8, "alpha": 16.0}, "judge rm": "x"}
    now = {"input.sample": "b", "sampling.alpha": 0.3, "train.lora": {"rank": 4, "alpha": 16.0}, "judge gold": "y"}
    assert changes(before, now) == [
        "judge gold is new",
        "judge rm is gone",
        "sampling.alpha 0.4 → 0.3",
        "train.lora.rank 8 → 4",
        "another sample",
    ]
    assert changes(now, now) == []


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def write(config: RunConfig, folder: Path) -> str:
    file = folder / "run.yaml"
    file.write_text(dump_config(config))
    return str(file)


def test_a_plan_says_what_would_run_and_does_nothing(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure({"estimate": {"accelerator": "H100"}, "models": {"dtype": "bfloat16"}})
    assert main(["pipeline", "plan", "--config", write(config, tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "24 samples of at most" in shown
    assert "on 1 H100" in shown
    assert "align-weak: has not run yet, so align-weak, sample, cong-s" in shown
    assert not config.output_dir.exists()


def test_the_plan_of_a_finished_pipeline_is_to_do_nothing(
    undisturbed: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(undisturbed, tmp_path)
    assert main(["pipeline", "plan", "--config", file]) == 0
    assert "everything is done; a run would do nothing" in capsys.readouterr().out
    assert main(["pipeline", "run", "--config", file]) == 0
    assert "0 stages ran (none), 9 were complete" in capsys.readouterr().err
    assert main(["pipeline", "plan", "--config", file, "--set", "pipeline.own_sampling.seed=51"]) == 0
    assert "own-samples: pipeline.own_sampling.seed 50 → 51, so own-samples, cong, evaluate" in capsys.readouterr().out


def test_status_shows_how_far_a_stage_is(copied: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sample", "cong-s"):
        (folder,) = (copied.output_dir / "stages" / name).iterdir()
        (folder / "complete.json").unlink()
    assert main(["pipeline", "status", "--config", write(copied, tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "24 of 24 samples (100%)" in shown
    assert "continues" in shown
    assert "waits" in shown


def test_a_dry_run_prints_what_loads_to_the_same(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure()
    assert main(["pipeline", "run", "--dry-run", "--config", write(config, tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "".join(line for line in shown.splitlines(keepends=True) if line[0] != "#") == dump_config(config)
    assert "# Hours, memory and disk need estimate.accelerator" in shown
    assert not config.output_dir.exists()
