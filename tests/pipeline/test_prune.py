"""What former recipes have left goes when it is asked for, and nothing that may still be needed."""

import shutil
from pathlib import Path

import pytest

from cong.cli import main
from cong.config import RunConfig, dump_config
from cong.errors import ConfigError
from cong.pipeline import run_pipeline
from cong.pipeline.conductor import only_one
from cong.pipeline.pruning import leftovers, prune
from tests.pipeline.conftest import changed, states


def names(config: RunConfig, *others: RunConfig) -> list[str]:
    """Stages of which something would go."""
    return [one.folder.parent.name for one in leftovers(config, others)]


def test_a_former_recipe_s_folders_go_and_the_present_one_s_stay(
    copied: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names(copied) == []
    now = changed(copied, {"pipeline": {"prefer": {"learning_rate": 2e-4}}})
    assert run_pipeline(now).ran == ["cong", "evaluate", "report"]
    assert names(now) == ["cong", "evaluate", "report"]
    assert names(now, copied) == []
    file, kept = tmp_path / "now.yaml", tmp_path / "kept.yaml"
    file.write_text(dump_config(now))
    kept.write_text("pipeline: {prefer: {learning_rate: 3e-4}}\n")
    command = ["pipeline", "prune", "--config", str(file)]
    assert main([*command, "--keep", str(kept)]) == 0
    assert "removed 0 folders" in capsys.readouterr().out
    assert main([*command, "--dry-run"]) == 0
    assert "would remove 3 folders" in capsys.readouterr().out
    assert names(now) == ["cong", "evaluate", "report"]
    assert main(command) == 0
    assert "removed 3 folders" in capsys.readouterr().out
    assert names(now) == []
    assert set(states(now).values()) == {"done"}
    assert states(copied)["cong"] == "changed"


def test_what_may_still_be_needed_stays(copied: RunConfig) -> None:
    # The stage will take over what was drawn, and it is not known yet what those behind it need.
    more = changed(copied, {"pipeline": {"num_samples": 2}})
    assert states(more)["sample"] == "changed"
    assert names(more) == []


def test_stages_of_no_method_and_what_was_set_aside_go(copied: RunConfig) -> None:
    stages = copied.output_dir / "stages"
    shutil.copytree(stages / "cong", stages / "cong-copy")
    (stages / "cong" / ".aside-x-1").mkdir()
    assert [one.folder.parent.name for one in prune(copied)] == ["cong", "cong-copy"]
    assert set(states(copied).values()) == {"done"}
    without = changed(copied, {"pipeline": {"methods": ["cong"]}, "evaluation": {"prompts": None}})
    assert set(names(without)) >= {"plain-samples", "weak-sft", "evaluate"}


def test_a_pipeline_at_work_and_another_folder_are_refused(copied: RunConfig, tmp_path: Path) -> None:
    with only_one(copied.output_dir), pytest.raises(ConfigError, match="another pipeline is at work"):
        prune(copied)
    with pytest.raises(ConfigError, match="must share it"):
        leftovers(copied, [copied.model_copy(update={"output_dir": tmp_path / "other"})])
