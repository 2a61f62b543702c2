"""`cong sample`: prompts in, samples out, and only what is missing when it is run again."""

import json
import resource
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from cong.cli import main
from cong.cli.samples_file import SamplesFile
from cong.errors import ConfigError
from cong.prompts import read_prompts
from cong.schemas import SampleRecord
from cong.stream import StreamReader, open_store
from tests.engine.conftest import World


def run(world: World, tmp_path: Path, *more: str) -> int:
    settings = [
        f"models.aligned.source={world.folder('llama', 1)}",
        f"models.base.source={world.folder('llama', 2)}",
        "models.dtype=float32",
        "sampling.max_tokens=6",
        "engine.kv_memory_bytes=4000000",
        "engine.max_running=4",
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    files = ["--prompts", str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "samples.jsonl")]
    return main(["sample", *files, *overrides, *more])


def samples(tmp_path: Path) -> list[SampleRecord]:
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    return [SampleRecord.model_validate_json(line) for line in lines]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"say {word}", "prompt_id": f"p{i}", "source": "x"} for i, word in enumerate("abcdefgh")]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_a_second_run_makes_only_what_is_missing(
    world: World, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(world, tmp_path, "--num-samples", "2") == 0
    first = samples(tmp_path)
    assert {(record.prompt.prompt_id, record.sample_index) for record in first} == {
        (f"p{i}", index) for i in range(8) for index in (0, 1)
    }
    out = tmp_path / "samples.jsonl"
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:9]) + lines[9][: len(lines[9]) // 2])  # killed in the middle of a line
    capsys.readouterr()
    assert run(world, tmp_path, "--num-samples", "2") == 0
    assert "sampling: started (7 of 16 to do)" in capsys.readouterr().err
    again = samples(tmp_path)
    assert again[:9] == first[:9]
    drawn = {record.key: record.completion_token_ids for record in first}
    assert {record.key: record.completion_token_ids for record in again} == drawn
    assert len(again) == 16
    assert run(world, tmp_path, "--num-samples", "3") == 0
    assert len(samples(tmp_path)) == 24


def test_prompts_of_equal_tokens_are_sampled_once_and_that_is_told(
    world: World, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with prompts.open("a") as file:
        file.write(json.dumps({"prompt": "say b", "prompt_id": "again"}) + "\n")
    assert run(world, tmp_path, "--num-samples", "2") == 0
    told = capsys.readouterr().err
    assert "16 samples written" in told
    assert "prompts with the tokens of one before them: 1" in told
    assert "'again' those of 'p1'" in told
    assert {record.prompt.prompt_id for record in samples(tmp_path)} == {f"p{i}" for i in range(8)}
    assert run(world, tmp_path, "--num-samples", "2") == 0
    assert "'again' those of 'p1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1}\n{"b": 2}\n',
        '{"a": 1}\n',
        '{"a": 1}',
        "say a\n",
        "say a",
        '[{"key": 1}]',
        '{"key": "1"}',
        pytest.param("[" * 100_000 + "\n", id="deep"),
    ],
)
def test_a_file_of_something_else_is_not_touched(
    world: World, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    out = tmp_path / "samples.jsonl"
    out.write_text(content)
    assert run(world, tmp_path) == 2
    assert out.read_text() == content
    assert "something else than samples after byte 0; give another --out" in capsys.readouterr().err


def test_a_file_takes_one_process_at_a_time(
    world: World, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(SamplesFile(tmp_path / "samples.jsonl")):
        assert run(world, tmp_path) == 2
        assert "another process writes to" in capsys.readouterr().err
    assert run(world, tmp_path) == 0


def test_a_prompt_that_is_too_long_is_named_before_anything_is_drawn(
    world: World, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with prompts.open("a") as file:
        file.write(json.dumps({"prompt": "a " * 20_000, "prompt_id": "long"}) + "\n")
    assert run(world, tmp_path) == 2
    said = capsys.readouterr().err
    assert "prompt 'long' has " in said
    assert "leave out the prompt, or lower sampling.max_tokens" in said
    assert not (tmp_path / "samples.jsonl").exists()


def test_one_id_for_two_prompts_is_refused_before_the_networks_are_loaded(
    world: World, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": text, "prompt_id": "same"} for text in ("a", "a")]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(world, tmp_path) == 0, "the same prompt twice is harmless"
    with prompts.open("a") as file:
        file.write(json.dumps({"prompt": "b", "prompt_id": "same"}) + "\n")
    capsys.readouterr()
    assert run(world, tmp_path, "--set", "models.base.source=nowhere") == 2
    assert "two prompts have the id 'same'; samples are joined by it, so give each its own" in capsys.readouterr().err


def test_weights_of_another_number_of_networks_are_told_before_they_are_loaded(
    world: World, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(world, tmp_path, "--set", "sampling.weights=[1.0]", "--set", "models.base.source=nowhere") == 2
    said = capsys.readouterr().err
    assert "sampling.weights are (1.0,), and models names 2 network(s): aligned, base; give one weight for each" in said
    assert "or name the network that is missing" in said


def test_what_the_machine_refuses_is_one_line(
    world: World, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # as on a disk that is full
    try:
        assert run(world, tmp_path, "--num-samples", "2") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"cong: {tmp_path / 'samples.jsonl'} cannot be used: File too large; make room")
    assert run(world, tmp_path, "--num-samples", "2") == 0, "it goes on where it was"
    assert len(samples(tmp_path)) == 16

    (tmp_path / "samples.jsonl").unlink()
    (tmp_path / "samples.jsonl").mkdir()
    assert run(world, tmp_path) == 2
    assert "samples.jsonl is no regular file" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--stream"])
def test_a_place_that_cannot_be_is_told_before_the_networks_are_loaded(
    world: World,
    tmp_path: Path,
    prompts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the networks are loaded")

    monkeypatch.setattr("cong.engine.open_engine", refused)
    (tmp_path / "file").touch()
    sources = [
        f"--set=models.{role}.source={world.folder('llama', seed)}"
        for seed, role in enumerate(("aligned", "base"), start=1)
    ]
    assert main(["sample", "--prompts", str(prompts), option, str(tmp_path / "file" / "below"), *sources]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_no_samples_at_all_is_refused(tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--prompts", str(prompts), "--out", str(tmp_path / "o"), "--num-samples", "0"]) == 2
    assert "--num-samples is 0; give at least 1" in capsys.readouterr().err
    assert main(["sample", "--prompts", str(prompts), "--out", str(tmp_path / "o"), "--num-samples", "4097"]) == 2
    assert "--num-samples is 4097; give at least 1 and at most 4096" in capsys.readouterr().err
    # As from a variable of the shell that is not set.
    assert main(["sample", "--prompts", str(prompts), "--stream", ""]) == 2
    assert "nothing would keep the samples; give --out or --stream" in capsys.readouterr().err


def test_without_networks_the_settings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("hello\n")
    assert main(["sample", "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "o")]) == 2
    assert "models.aligned.source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": 3}\n', r"a\.jsonl:2 is no prompt: text"),
        (
            "a.jsonl",
            '{"promt": "x"}\n',
            r"a\.jsonl:1 has none of the fields .*; rename one, or name it as prompt_column",
        ),
        ("a.jsonl", "{\n", r"a\.jsonl:1 is not JSON"),
    ],
)
def test_a_wrong_prompt_is_named_by_its_line(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        list(read_prompts(tmp_path / name))


def test_prompts_come_as_text_messages_or_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"text": "one"},
        {"prompt": [{"role": "user", "content": "two"}]},
        {"messages": [{"role": "user", "content": "three"}]},
        {"token_ids": [4]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    one, two, three, four = read_prompts(path)
    assert one.text == "one"
    assert (two.messages[0].content, three.messages[0].content, four.token_ids) == ("two", "three", (4,))


def test_a_stream_that_was_killed_at_any_moment_is_completed(world: World, tmp_path: Path, prompts: Path) -> None:
    stream = tmp_path / "stream"
    command = [sys.executable, "-m", "cong.cli", "sample", "--prompts", str(prompts), "--stream", str(stream)]
    settings = [
        f"models.aligned.source={world.folder('llama', 1)}",
        f"models.base.source={world.folder('llama', 2)}",
        "models.dtype=float32",
        "num_threads=1",
        "sampling.max_tokens=100",
        "sampling.ignore_eos=true",
        "engine.max_running=2",
        "engine.kv_memory_bytes=4000000",
        "stream.write.rows_per_segment=3",
        "stream.write.max_age_s=0.2",
    ]
    command += [part for setting in settings for part in ("--set", setting)] + ["--num-samples", "3"]

    def stored() -> list[SampleRecord]:
        reader = StreamReader(open_store(str(stream)))
        return [record for record in reader.records() if isinstance(record, SampleRecord)]

    for num_wanted in (3, 12):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until_s = time.monotonic() + 240.0
        while time.monotonic() < until_s:
            if process.poll() is not None or len(list(stream.glob("**/*.parquet"))) * 3 >= num_wanted:
                break
            time.sleep(0.02)
        process.kill()
        process.wait(timeout=30)
    before = {record.key: record.completion_token_ids for record in stored()}
    assert 0 < len(before) < 24
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert f"{24 - len(before)} samples written, {len(before)} were there" in done.stderr
    after = stored()
    assert len(after) == len({record.key for record in after}) == 24
    drawn = {record.key: record.completion_token_ids for record in after}
    assert {key: drawn[key] for key in before} == before
