"""The world as files: what other programs read is what the lab's own stages use."""

import json
from pathlib import Path
from typing import Any

from cong.config import LabConfig
from cong.lab.export import export_texts
from cong.lab.networks import prompt_ids, response_ids
from cong.lab.stages import draw_preferences, held_out_prompts, training_prompts
from cong.lab.world import gold_reward
from cong.prompts import open_prompts


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files_hold_the_lab_s_own_prompts_pairs_and_answers(tmp_path: Path) -> None:
    config = LabConfig.model_validate(
        {"num_training_prompts": 30, "alignment": {"num_pairs": 20}, "evaluation": {"num_prompts": 10}}
    )
    files = export_texts(config, tmp_path)
    asked = [prompt.text for prompt in open_prompts(str(files["prompts"])).strict()]
    assert asked == training_prompts(config)
    judged = [prompt.text for prompt in open_prompts(str(files["held-out prompts"])).strict()]
    assert judged == held_out_prompts(config)
    assert not set(asked) & set(judged)
    pairs = [
        (prompt_ids(row["prompt"]), (response_ids(row["chosen"]), response_ids(row["rejected"])))
        for row in rows(files["preferences"])
    ]
    expected = draw_preferences(config, config.alignment.preference_noise)
    assert pairs == [(example.prompt_ids, example.responses) for example in expected]
    answers = rows(files["ideal answers to them"])
    assert [row["prompt"] for row in answers] == asked
    assert all(gold_reward(row["prompt"], row["answer"]) == 1.0 for row in answers)
