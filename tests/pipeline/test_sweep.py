"""The curve of reward against alpha: what is drawn at each strength, who judges it, and what runs again."""

import json
from pathlib import Path
from statistics import fmean

import pytest

from cong.config import RunConfig
from cong.config.loading import check
from cong.errors import ConfigError
from cong.lab.world import gold_reward
from cong.pipeline import Board, run_pipeline
from cong.schemas import alpha_weights
from cong.stream import StreamReader, open_store
from tests.pipeline.conftest import NUM_HELD_OUT, changed


def points(config: RunConfig) -> dict[float, float]:
    """Mean gold reward by alpha, as the stage has left it."""
    (folder,) = [one.folder for one in Board(config).survey() if one.stage.name == "alpha-sweep"]
    assert folder is not None
    found = json.loads((folder / "sweep.json").read_text())
    assert {point["found"]["num_answers"] for point in found} == {NUM_HELD_OUT}
    return {point["alpha"]: point["found"]["rewards"]["gold"]["reward"]["mean"] for point in found}


def drawn(config: RunConfig, alpha: float) -> list[float]:
    """Gold rewards of the answers in the stream that were drawn at a strength."""
    records = StreamReader(open_store(str(config.output_dir / "answers"))).records()
    mine = [record for record in records if record.parameters.weights == alpha_weights(alpha)]
    return [gold_reward(record.prompt.text or "", record.completion_text) for record in mine]


def test_each_alpha_answers_every_held_out_prompt_and_only_a_new_one_is_drawn(copied: RunConfig) -> None:
    config = changed(copied, {"pipeline": {"alphas": [0.0, 0.4]}})
    outcome = run_pipeline(config)
    assert outcome.ran == ["alpha-sweep", "report"]
    assert points(config) == {alpha: pytest.approx(fmean(drawn(config, alpha))) for alpha in (0.0, 0.4)}
    page = (config.output_dir / "report.html").read_text()
    assert "Reward against alpha" in page
    assert "The same answers by length." in page
    assert "The samples that were trained on were drawn at alpha 0.4" in page
    assert "| 0.4 |" in (config.output_dir / "report.md").read_text().replace("**", "")

    more = changed(copied, {"pipeline": {"alphas": [0.0, 0.4, 1.0]}})
    assert run_pipeline(more).ran == ["alpha-sweep", "report"]
    assert {alpha: points(more)[alpha] for alpha in (0.0, 0.4)} == points(config)
    assert len(drawn(more, 0.4)) == NUM_HELD_OUT, "what was drawn before is not drawn again"
    assert len(drawn(more, 1.0)) == NUM_HELD_OUT


def test_the_report_shows_samples_token_by_token_and_names_the_bottleneck(undisturbed: RunConfig) -> None:
    page = (undisturbed.output_dir / "report.html").read_text()
    assert "The first samples of each stage" in page
    assert page.count('class="token for"') + page.count('class="token against"') > 20
    assert "implicit reward" in page
    assert "The bottleneck is" in page
    assert "throughput (tokens/s)" in page
    assert "Mean reward by gold on 12 held-out prompts: weak aligned" in page


def test_the_same_strength_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"alphas are \(0\.4, 0\.4\); give each once"):
        check(RunConfig, {"pipeline": {"alphas": [0.4, 0.4]}}, "test")
