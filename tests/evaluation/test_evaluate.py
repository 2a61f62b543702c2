"""A whole evaluation on the lab's shipped model: what it finds, what it leaves, and that a killed one continues."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cong.cli import main
from cong.config import RunConfig, dump_config, load_config
from cong.errors import ConfigError, EvaluationError
from cong.evaluation import EvaluationResult, evaluate, sampling, write_evaluation
from cong.evaluation.results import SetResult
from cong.evaluation.storage import KeyedLines
from cong.lab.records import synthetic_record
from cong.lab.world import gold_reward
from cong.schemas import SampleRecord
from cong.stream import StreamReader, open_store

from .conftest import GOLD, NUM_PROMPTS, Configure, LabPair
from .test_judges import save_reward_model

IMPLICIT: dict[str, Any] = {"kind": "implicit"}


def save(config: RunConfig, path: Path) -> str:
    path.write_text(dump_config(config))
    return str(path)


def set_of(result: EvaluationResult, label: str) -> SetResult:
    (found,) = [one for one in result.sets if one.label == label]
    return found


def test_the_aligned_model_is_better_than_its_base_and_everything_is_reported(
    configure: Configure, lab_pair: LabPair, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = configure(
        candidates={
            "base": {"source": str(lab_pair.base)},
            "aligned": {"source": str(lab_pair.aligned)},
            "ideal": {"answers": str(lab_pair.ideal)},
        },
        judges={"gold": GOLD, "implicit": IMPLICIT},
        temperatures=[1.0, 0.0],
        num_samples=2,
        gap={"floor": "base", "ceiling": "ideal"},
        misfit={"student": "aligned", "weak": "base"},
        num_shown_prompts=3,
    )
    assert main(["evaluate", "--config", save(config, tmp_path / "run.yaml")]) == 0
    out = config.output_dir
    result = EvaluationResult.model_validate_json((out / "evaluation.json").read_text())

    base, aligned = set_of(result, "base, T=1"), set_of(result, "aligned, T=1")
    assert (base.num_prompts, base.num_answers) == (NUM_PROMPTS, 2 * NUM_PROMPTS)
    assert set_of(result, "base, greedy").num_answers == NUM_PROMPTS
    assert aligned.rewards["gold"].reward.mean > base.rewards["gold"].reward.mean + 0.05
    assert set_of(result, "ideal, given").rewards["gold"].reward.mean == 1.0

    (wins,) = [one for one in result.comparisons if (one.judge, one.left) == ("gold", "aligned, T=1")]
    assert (wins.right, wins.num_prompts) == ("base, T=1", NUM_PROMPTS)
    assert wins.num_wins + wins.num_ties + wins.num_losses == 4 * NUM_PROMPTS
    assert wins.win_rate.low is not None
    assert wins.win_rate.low > 0.5
    assert {(one.judge, one.left, one.right) for one in result.comparisons} == {
        (judge, left, f"base, {against}")
        for judge in ("gold", "implicit")
        for left, against in (
            ("aligned, T=1", "T=1"),
            ("aligned, greedy", "greedy"),
            ("ideal, given", "T=1"),
            ("ideal, given", "greedy"),
        )
    }
    (gap,) = [one for one in result.gaps if (one.judge, one.decoding) == ("gold", "T=1")]
    assert gap.recovered is not None
    assert gap.recovered.mean == pytest.approx(gap.gained.mean / gap.gap.mean)
    assert 0.0 < gap.recovered.mean < 1.0

    (relation,) = [one for one in result.correlations if one.set_label == "all, T=1"]
    assert relation.spearman is not None
    assert relation.spearman > 0.4
    assert list(relation.reference_by_quantile) == sorted(relation.reference_by_quantile)
    assert [one.pearson for one in result.correlations if one.set_label == "ideal, given"] == [None]
    assert {one.judge for one in result.agreements} == {"implicit"}
    assert [one.set_label for one in result.misfits] == ["aligned, T=1", "base, T=1"]
    assert all(one.kl_student_weak > 0.01 for one in result.misfits)

    rows = [json.loads(line) for line in (out / "judged.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 3 * NUM_PROMPTS + NUM_PROMPTS
    for row in rows[:50]:
        assert row["rewards"]["gold"] == gold_reward(row["prompt_id"] + "=", row["answer"])
    page = (out / "report.html").read_text()
    for shown in ("Gap recovered", "Misfit", "a score test", "Answers side by side", "log-ratio per token"):
        assert shown in page
    assert "<script" not in page
    assert "src=" not in page
    text = (out / "report.md").read_text()
    assert text.count("\nPrompt:\n") == 3
    assert load_config(RunConfig, [out / "config.yaml"]) == config
    shown_text = capsys.readouterr().out
    assert "aligned, T=1" in shown_text
    assert str(out / "report.html") in shown_text.replace("\n", "")


def test_a_second_run_draws_and_judges_nothing_and_finds_the_same(configure: Configure) -> None:
    config = configure(judges={"gold": GOLD, "implicit": IMPLICIT}, num_prompts=20)
    first = evaluate(config)
    files = [*config.output_dir.glob("answers/*"), *config.output_dir.glob("judgements/*")]
    before = {path: path.read_bytes() for path in files}
    assert len(before) == 4
    second = evaluate(config)
    assert second.result == first.result
    assert {path: path.read_bytes() for path in files} == before


def test_an_evaluation_killed_at_any_moment_continues(configure: Configure, tmp_path: Path) -> None:
    """Killed while it samples: what was drawn stays as it is, and the whole finds what an unbroken one finds."""
    config = configure(num_prompts=24, sampling={"max_tokens": 30, "ignore_eos": True})
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"max_running": 2})})
    command = [sys.executable, "-m", "cong.cli", "evaluate", "--config", save(config, tmp_path / "run.yaml")]
    answers = config.output_dir / "answers" / "base.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until_s = time.monotonic() + 240.0
        while time.monotonic() < until_s:
            if process.poll() is not None or (answers.exists() and answers.read_bytes().count(b"\n") >= 10):
                break
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait(timeout=30)
    kept = answers.read_bytes()
    assert kept.count(b"\n") >= 10
    torn = kept.rpartition(b"\n")[0][:-7]
    answers.write_bytes(torn)
    continued = evaluate(config)
    whole = torn.rpartition(b"\n")[0]
    assert answers.read_bytes().startswith(whole)
    drawn = [SampleRecord.model_validate_json(line) for line in answers.read_bytes().splitlines()]
    assert len({record.key for record in drawn}) == len(drawn) == 24
    unbroken = evaluate(config.model_copy(update={"output_dir": tmp_path / "unbroken"}))
    assert continued.result == unbroken.result


def test_answers_may_lie_in_a_stream(configure: Configure, tmp_path: Path) -> None:
    config = configure(answers_stream=str(tmp_path / "stream"), num_prompts=20)
    first = evaluate(config)
    stored = [record.key for record in StreamReader(open_store(str(tmp_path / "stream"))).records()]
    assert len(stored) == len(set(stored)) == 40
    assert evaluate(config).result == first.result
    assert len(list(StreamReader(open_store(str(tmp_path / "stream"))).records())) == 40
    in_files = evaluate(configure(num_prompts=20).model_copy(update={"output_dir": tmp_path / "files"}))
    assert in_files.result.sets == first.result.sets


def test_identical_answers_tie_under_every_kind_of_judge(
    configure: Configure, lab_pair: LabPair, tmp_path: Path
) -> None:
    reward_model = save_reward_model(tmp_path / "rm")
    config = configure(
        candidates={"one": {"answers": str(lab_pair.ideal)}, "two": {"answers": str(lab_pair.ideal)}},
        judges={
            "gold": GOLD,
            "implicit": IMPLICIT,
            "rm": {"kind": "reward_model", "network": {"source": str(reward_model)}, "batch_size": 64},
        },
        gap={"floor": "one", "ceiling": "two"},
    )
    evaluation = evaluate(config)
    for one in evaluation.result.comparisons:
        assert (one.num_wins, one.num_ties, one.num_losses) == (0, NUM_PROMPTS, 0)
        assert one.win_rate.mean == one.length_controlled.mean == 0.5
        assert one.difference.mean == 0.0
    assert [one.share for one in evaluation.result.agreements] == [None, None]
    assert write_evaluation(evaluation, config)["report"].exists()


def test_prompts_that_one_side_lacks_are_named_in_the_record_and_on_the_page(
    configure: Configure, lab_pair: LabPair, tmp_path: Path
) -> None:
    rows = lab_pair.ideal.read_text().splitlines()
    some = tmp_path / "some.jsonl"
    some.write_text("\n".join(rows[2:]) + '\n{"prompt_id": "nobody", "answer": ""}\n')
    lacking = tuple(json.loads(row)["prompt_id"] for row in rows[:2])
    bad = tmp_path / "bad.jsonl"
    bad.write_text("".join(json.dumps({**json.loads(row), "answer": "!"}) + "\n" for row in rows))
    config = configure(candidates={"all": {"answers": str(bad)}, "some": {"answers": str(some)}})
    evaluation = evaluate(config)
    found = set_of(evaluation.result, "some, given")
    assert (found.missing, found.unknown) == (lacking, ("nobody",))
    (comparison,) = evaluation.result.comparisons
    assert (comparison.num_prompts, comparison.right_only) == (NUM_PROMPTS - 2, lacking)
    page = write_evaluation(evaluation, config)["page"].read_text()
    assert ", ".join(lacking) in page
    assert "nobody" in page
    assert f"the highest mean reward is that of some on the {NUM_PROMPTS - 2} that it answers: 1.000" in page
    assert page.count(f" | {NUM_PROMPTS - 2} | {NUM_PROMPTS - 2} |") == 1, "answers and prompts"


def test_what_is_wrong_is_found_before_anything_is_drawn(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cong\.lab\.world has no golden"):
        evaluate(configure(judges={"gold": {**GOLD, "function": "cong.lab.world:golden"}}))
    with pytest.raises(ConfigError, match=r"evaluation\.judges is empty"):
        evaluate(configure(judges={}))
    with pytest.raises(ConfigError, match=r"evaluation\.candidates is empty"):
        evaluate(configure(candidates={}))
    missing = {"base": {"source": str(configure().models.base.source)}, "file": {"answers": str(tmp_path / "nosuch")}}
    with pytest.raises(ConfigError, match="cannot read answers"):
        evaluate(configure(candidates=missing))
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_is_found_before_anything_is_drawn(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the answers go into a stream elsewhere, so that the folder is needed only when all is drawn."""

    def refused(*_: Any) -> None:
        raise AssertionError("a network is loaded")

    monkeypatch.setattr(sampling, "open_engine", refused)
    config = configure(answers_stream=str(tmp_path / "stream")).model_copy(update={"output_dir": Path("/proc/none")})
    with pytest.raises(NotADirectoryError, match="/proc/none/answers"):
        evaluate(config)
    assert not (tmp_path / "stream").exists()


def test_a_full_disk_is_told_with_the_file_that_it_stops(tmp_path: Path) -> None:
    lines = KeyedLines(tmp_path / "base.jsonl", SampleRecord)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/base\.jsonl'"):
            lines.write(synthetic_record(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not lines.known({synthetic_record(1).key})
    lines.close()


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_drawn(
    configure: Configure, lab_pair: LabPair, tmp_path: Path
) -> None:
    prompts = tmp_path / "long.jsonl"
    prompts.write_text(lab_pair.prompts.read_text() + json.dumps({"prompt": "a" * 500, "prompt_id": "long"}) + "\n")
    with pytest.raises(EvaluationError, match=r"prompt 'long' has 501 tokens, sampling\.max_tokens is 26"):
        evaluate(configure(prompts=str(prompts)))
    assert (tmp_path / "out" / "answers" / "base.jsonl").read_bytes() == b""


def test_two_evaluations_at_once_do_not_mix(configure: Configure) -> None:
    config = configure()
    held = KeyedLines(config.output_dir / "answers" / "base.jsonl", SampleRecord)
    with pytest.raises(EvaluationError, match="is being written by another evaluation"):
        evaluate(config)
    held.close()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    configure: Configure, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = configure(judges={"gold": GOLD, "implicit": IMPLICIT}, temperatures=[0.7, 0.0], num_samples=3)
    assert main(["evaluate", "--config", save(config, tmp_path / "run.yaml"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"# {NUM_PROMPTS} prompts from" in shown
    assert f"candidate base: {4 * NUM_PROMPTS} answers (T=0.7 x 3, greedy x 1, at most 26 tokens)" in shown
    assert "GiB in float32; 0 samples are in" in shown
    assert f"judge gold: program cong.lab.world:gold_reward, 0 to 1; {8 * NUM_PROMPTS} answers" in shown
    assert "judge implicit: log p(" in shown
    assert RunConfig.model_validate(yaml.safe_load(shown)) == config
    assert not (tmp_path / "out").exists()


def test_the_command_line_names_a_failing_judge_without_a_traceback(
    configure: Configure, capsys: pytest.CaptureFixture[str], tmp_path: Path, lab_pair: LabPair
) -> None:
    judges = {"nan": {"kind": "program", "function": "tests.evaluation.rewards:nan_for_b"}}
    answers = tmp_path / "a.jsonl"
    answers.write_text(
        json.dumps({"prompt_id": json.loads(lab_pair.ideal.read_text().splitlines()[0])["prompt_id"], "answer": "b"})
    )
    config = configure(judges=judges, candidates={"one": {"answers": str(answers)}})
    assert main(["evaluate", "--config", save(config, tmp_path / "run.yaml")]) == 2
    assert "judge 'nan' says nan of prompt" in capsys.readouterr().err


def test_importing_the_configuration_of_an_evaluation_needs_no_torch() -> None:
    program = "import cong.config.evaluation, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ)
    )
    assert done.stdout.strip() == "False"
