"""`cong stream`: what people see, and exports that other programs read."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from cong.cli import BROKEN_PIPE, main
from cong.config.stream import WriteSettings
from cong.lab.records import synthetic_record
from cong.schemas import Message, Prompt
from cong.stream import StreamReader, StreamWriter, open_store
from cong.stream.cursor import mixed
from cong.stream.statistics import Subsample, sample_facts
from tests.stream.streams import cached_record, keys, write


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Contrastive samples of prompts 0 to 19, and plain ones of prompts 10 to 29."""
    path = str(tmp_path_factory.mktemp("commands") / "stream")
    settings = WriteSettings(rows_per_segment=8)
    with StreamWriter(open_store(path), settings, "sampler") as writer:
        writer.append_many(cached_record(number) for number in range(20))
    with StreamWriter(open_store(path), settings, "plain") as writer:
        writer.append_many(synthetic_record(number, is_plain=True) for number in range(10, 30))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["stream", *arguments]) == 0
    return capsys.readouterr().out


def test_ls_shows_writers_sizes_and_state(location: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "ls", location)
    assert "40 rows in 6 segments" in shown
    assert "every writer has closed" in shown
    assert [line.split()[:4] for line in shown.splitlines() if "-000001" in line] == [
        ["plain-000001", "closed", "3", "20"],
        ["sampler-000001", "closed", "3", "20"],
    ]


@pytest.mark.parametrize("follow", [[], ["-f", "--poll", "0.01"]])
def test_tail_shows_the_last_records_of_each_writer(
    location: str, capsys: pytest.CaptureFixture[str], follow: list[str]
) -> None:
    shown = run(capsys, "tail", location, "-n", "2", *follow).splitlines()
    assert [line.split()[1] for line in shown] == [
        f"{name}-000001:{row}" for name in ("plain", "sampler") for row in (18, 19)
    ]
    assert keys([19])[0][:12] in shown[-1]


def test_tail_shows_what_is_whole_and_tells_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stream"
    write(open_store(str(path)), range(10), "a")
    write(open_store(str(path)), range(10, 20), "b")
    segment = max(path.glob("segments/a-*"))
    content = bytearray(segment.read_bytes())
    content[40] ^= 1
    segment.write_bytes(content)
    assert main(["stream", "tail", str(path), "-n", "3"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[1] for line in shown.splitlines()] == [
        *(f"a-000001:{row}" for row in (7, 8, 9)),
        *(f"b-000001:{row}" for row in (7, 8, 9)),
    ]
    assert main(["stream", "tail", str(path), "-n", "5"]) == 0
    shown, told = capsys.readouterr()
    assert [line.split()[1] for line in shown.splitlines()][:3] == [f"a-000001:{row}" for row in (7, 8, 9)]
    assert told.count("rows 5 to 6 of a-000001") == len(told.splitlines()) == 1


def test_tail_lets_no_sample_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "stream")
    with StreamWriter(open_store(path), writer_id="w") as writer:
        writer.append(cached_record(0).model_copy(update={"completion_text": "a\x1b[2J\x1b]0;b\x07c\u202ed é"}))
    assert run(capsys, "tail", path).rstrip().endswith("a [2J ]0;b c d é")


def test_verify_of_a_damaged_identity_asks_the_store_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stream"
    write(open_store(str(path)), range(5))
    (path / "stream.json").write_text("{}")
    # An option that nobody understands must not be dropped, as if it had not been given.
    assert main(["stream", "verify", str(path), "--storage-option", "endpoint"]) == 2
    assert "'endpoint': write it as NAME=VALUE" in capsys.readouterr().err
    assert main(["stream", "verify", str(path)]) == 1
    assert "stream.json is not what was written" in capsys.readouterr().out


def test_tail_follows_a_sampler_that_is_at_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "stream")
    program = (
        "import sys, time\n"
        "from cong.config.stream import WriteSettings\n"
        "from cong.lab.records import synthetic_record\n"
        "from cong.stream import StreamWriter, open_store\n"
        "with StreamWriter(open_store(sys.argv[1]), WriteSettings(max_age_s=0.02), 'sampler') as writer:\n"
        "    for number in range(40):\n"
        "        writer.append(synthetic_record(number))\n"
        "        time.sleep(0.01)\n"
    )
    sampler = subprocess.Popen([sys.executable, "-c", program, path])
    try:
        while not list(Path(path).glob("segments/*.parquet")):
            assert sampler.poll() is None or list(Path(path).glob("segments/*.parquet"))
            time.sleep(0.01)
        shown = run(capsys, "tail", path, "-f", "--poll", "0.01", "--idle-timeout", "60").splitlines()
    finally:
        assert sampler.wait(60) == 0
    # It began with what was there, and ended when the sampler had closed: no record twice, none left out.
    rows = [int(line.split()[1].rpartition(":")[2]) for line in shown]
    assert rows == list(range(rows[0], 40))
    assert rows[0] < 40
    assert [line.split()[0] for line in shown] == [key[:12] for key in keys(range(rows[0], 40))]


def test_show_prints_one_record_by_its_key(location: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run(capsys, "show", location, keys([7])[0])) == cached_record(7).model_dump(mode="json")
    assert json.loads(run(capsys, "show", location, "sampler-000001:7"))["key"] == keys([7])[0]
    assert main(["stream", "show", location, "s-none"]) == 2
    assert "no record with key 's-none'" in capsys.readouterr().err
    assert main(["stream", "show", location, "sampler-000001:20"]) == 2
    assert "has no row 20 of sampler-000001; its rows are 0 to 19" in capsys.readouterr().err


def test_stats_agree_with_the_records_and_are_drawn(
    location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png, page = tmp_path / "stats.png", tmp_path / "stats.html"
    shown = run(capsys, "stats", location, "--kind", "contrastive", "--png", str(png), "--html", str(page))
    values = {" ".join(words[:-1]): words[-1] for words in map(str.split, shown.splitlines()) if len(words) > 1}
    everything = [cached_record(number) for number in range(20)]
    rewards = [record.implicit_reward_mean or 0.0 for record in everything]
    assert values["records"] == "20"
    assert values["tokens"] == "160"
    assert values["finish reason length"] == "5"
    assert float(values["mean implicit reward per token"]) == pytest.approx(sum(rewards) / 20, abs=1e-3)
    heads = [size for record in everything for size in record.head_sizes]
    assert float(values["mean head-set size"]) == pytest.approx(sum(heads) / len(heads), abs=1e-3)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "Head-set sizes" in page.read_text()


def test_compact_says_what_it_would_do_and_does_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "stream")
    with StreamWriter(open_store(path), WriteSettings(rows_per_segment=3), "w") as writer:
        writer.append_many(cached_record(number) for number in range(10))
    assert "4 segments would become 1\n" in run(capsys, "compact", path, "--dry-run")
    assert "4 segments became 1; 4 files removed" in run(capsys, "compact", path)
    assert [record.key for record in StreamReader(open_store(path)).records()] == keys(range(10))
    assert run(capsys, "compact", path) == "1 segment stays: no neighbours fit into one; 0 files removed\n"


def test_a_dry_run_of_compact_refuses_the_damage_that_the_real_one_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stream"
    with StreamWriter(open_store(str(path)), WriteSettings(rows_per_segment=3), "w") as writer:
        writer.append_many(cached_record(number) for number in range(10))
    third = sorted(path.glob("segments/*.parquet"))[2]
    content = bytearray(third.read_bytes())
    content[100] ^= 1
    third.write_bytes(content)
    before = sorted(path.glob("*/*"))
    for options in (["--dry-run"], []):
        assert main(["stream", "compact", str(path), *options]) == 2
        complaint = capsys.readouterr().err
        assert third.name in complaint
        assert "rows 6 to 8 of w-000001 cannot be trusted" in complaint
        assert sorted(path.glob("*/*")) == before


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("prompt-completion", {"prompt": 0, "completion": 1}),
        ("messages", {"messages": [{"role": "user", "content": 0}, {"role": "assistant", "content": 1}]}),
    ],
)
def test_every_container_holds_the_same_rows(
    location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, expected: object
) -> None:
    loaded = []
    for container in ("jsonl", "parquet", "dataset"):
        target = tmp_path / f"{form}.{container}"
        run(capsys, "export", location, str(target), "--form", form, "--as", container, "--kind", "contrastive")
        if container == "jsonl":
            loaded.append([json.loads(line) for line in target.read_text().splitlines()])
        elif container == "parquet":
            loaded.append(pq.read_table(target).to_pylist())
        else:
            loaded.append(
                datasets.load_dataset(str(target), split="train", cache_dir=str(tmp_path / "cache")).to_list()
            )
    assert loaded[0] == loaded[1] == loaded[2]
    texts = [(cached_record(number).prompt.text, cached_record(number).completion_text) for number in range(20)]
    filled = json.dumps(expected)
    for row, (prompt, completion) in zip(loaded[0], texts, strict=True):
        wanted = json.loads(
            filled.replace(": 0", f": {json.dumps(prompt)}").replace(": 1", f": {json.dumps(completion)}")
        )
        assert {name: row[name] for name in wanted} == wanted


def test_preferences_are_joined_by_prompt(location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "pairs"
    run(capsys, "export", location, str(target), "--form", "preference", "--as", "dataset", "--licence", "cc0-1.0")
    rows = pq.read_table(target / "data").to_pylist()
    assert [row["prompt_id"] for row in rows] == [f"p-{number}" for number in range(10, 20)]
    for number, row in enumerate(rows, start=10):
        assert row["chosen"] == cached_record(number).completion_text
        assert row["rejected"] == synthetic_record(number, is_plain=True).completion_text
    card = (target / "README.md").read_text()
    # Both sides of a pair came from networks whose terms hold; what has no partner is no part of the data.
    assert "from 10 chosen samples with 80 tokens and 10 rejected samples with 80 tokens" in card
    assert "strong `lab-strong` (f-strong): 10 samples" in card
    assert 'license: "cc0-1.0"' in card
    assert "aligned `lab-aligned` (f-aligned), base `lab-base` (f-base): 10 samples" in card
    assert "10 rows of form `preference`" in card


def test_an_export_says_what_was_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "stream")
    with StreamWriter(open_store(path), writer_id="w") as writer:
        records = map(cached_record, range(4))
        writer.append_many(
            one.model_copy(update={"finish_reason": "stop" if number else "length"})
            for number, one in enumerate(records)
        )
    told = run(capsys, "export", path, str(tmp_path / "all.jsonl"), "--form", "prompt-completion")
    assert "cut off by the limit of length: 1 sample, which their text does not show" in told
    only = ["--finish-reason", "stop"]
    told = run(capsys, "export", path, str(tmp_path / "whole.jsonl"), "--form", "prompt-completion", *only)
    assert "wrote 3 rows" in told
    assert "cut off" not in told


def test_an_export_says_what_has_no_partner_and_finds_one_under_another_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "stream")
    other = synthetic_record(1, is_plain=True)
    other = other.model_copy(update={"prompt": other.prompt.model_copy(update={"prompt_id": "twin"})})
    with StreamWriter(open_store(path), writer_id="w") as writer:
        writer.append_many([*map(cached_record, range(3)), synthetic_record(0, is_plain=True), other])
    told = run(capsys, "export", path, str(tmp_path / "pairs.jsonl"), "--form", "preference")
    assert "read 3 records, wrote 2 rows" in told
    assert "left out: 1 contrastive sample without a plain one of the same prompt" in told
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [(row["chosen_key"], row["rejected_key"]) for row in rows] == [
        (cached_record(0).key, synthetic_record(0, is_plain=True).key),
        (cached_record(1).key, other.key),
    ]


def test_prompts_with_one_id_are_never_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their plain samples lie the other way round, as they do where somebody has shuffled the prompts."""
    path = str(tmp_path / "stream")
    chosen = [cached_record(number) for number in range(2)]
    rejected = [synthetic_record(number, is_plain=True) for number in (1, 0, 2)]
    with StreamWriter(open_store(path), writer_id="w") as writer:
        for one in (*chosen, *rejected):
            writer.append(one.model_copy(update={"prompt": one.prompt.model_copy(update={"prompt_id": "same"})}))
    run(capsys, "export", path, str(tmp_path / "pairs.jsonl"), "--form", "preference")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [(row["chosen_key"], row["rejected_key"]) for row in rows] == [
        (chosen[0].key, rejected[1].key),
        (chosen[1].key, rejected[0].key),
    ]


@pytest.mark.parametrize("container", ["jsonl", "parquet", "dataset"])
def test_an_export_is_forced_to_disk_before_and_after_it_gets_its_name(
    location: str, tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forced: list[int] = []
    fsync, replace = os.fsync, os.replace

    def noted(handle: int) -> None:
        forced.append(os.fstat(handle).st_ino)
        fsync(handle)

    def named(source: Path, target: Path) -> None:
        every = [source, *source.rglob("*")]
        assert {path.stat().st_ino for path in every} <= {*forced}, [path.name for path in every]
        replace(source, target)
        forced.clear()

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "replace", named)
    run(capsys, "export", location, str(tmp_path / "out"), "--as", container)
    assert forced == [tmp_path.stat().st_ino]


def test_an_export_never_overwrites_and_leaves_nothing_half_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "stream")
    chat = cached_record(0).model_copy(
        update={"key": "chat", "prompt": Prompt(messages=(Message(role="user", content="?"),))}
    )
    with StreamWriter(open_store(path), writer_id="w") as writer:
        writer.append_many([cached_record(1), chat])
    target = tmp_path / "out" / "rows.parquet"
    assert main(["stream", "export", path, str(target), "--as", "parquet"]) == 2
    assert "one column cannot hold both. Export with the form `messages`" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    run(capsys, "export", path, str(target), "--form", "messages")
    assert main(["stream", "export", path, str(target)]) == 2
    assert "exists; remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ls", "nowhere"], "nowhere holds no stream"),
        (["stats", "{}", "--kind", "strange"], "Input should be 'contrastive' or 'plain'"),
        (["stats", "{}", "--min-tokens", "999"], "no record that passes the filter"),
        (["ls", "{}", "--storage-option", "x"], "write it as NAME=VALUE"),
        (["tail", "{}", "-n", "-3"], "--num is -3; give 0 or more"),
        (["tail", "{}", "-f", "--poll", "0"], "poll_s is 0.0: Input should be greater than 0"),
        (
            ["compact", "{}", "--rows-per-segment", "0"],
            "rows_per_segment is 0: Input should be greater than or equal to 1",
        ),
        (["stats", "{}", "--png", "plot.txt"], "--png is plot.txt; give a name that ends in .png"),
        (["stats", "{}", "--html", "/dev/null/page.html"], "/dev/null cannot be used: Not a directory; check the path"),
        (["export", "{}", "/dev/null/out.jsonl"], "cannot write /dev/null/out.jsonl: Not a directory; check the path"),
        (["export", "{}", "out", "--form", "preference", "--rejected", "nowhere"], "nowhere holds no stream"),
        (["retain", "{}"], "give --run with the output_dir of every training run"),
        (
            ["retain", "{}", "--cursor", "nowhere.json"],
            "cannot read the cursor nowhere.json: No such file or directory; check the path",
        ),
        (["verify", "{}", "--journal", "nowhere"], "--journal is nowhere, which is no folder"),
        (["stats", "{}", "--min-tokens", "9", "--max-tokens", "3"], "min_tokens is 9 and max_tokens 3; nothing passes"),
        (
            ["stats", "{}", "--min-reward", "1", "--max-reward", "-1"],
            "min_reward_mean is 1.0 and max_reward_mean -1.0;",
        ),
        (["export", "{}", "out", "--min-tokens", "999"], "there is nothing to export: no record passes the filter\n"),
    ],
)
def test_mistakes_are_told_in_one_line(
    location: str, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert main(["stream", *(location if argument == "{}" else argument for argument in arguments)]) == 2
    assert complaint in capsys.readouterr().err


def test_plain_parquet_readers_read_the_stream(location: str, tmp_path: Path) -> None:
    rows = datasets.load_dataset(
        "parquet", data_files=f"{location}/segments/*.parquet", split="train", cache_dir=str(tmp_path)
    )
    assert len(rows) == 40
    assert {row["key"] for row in rows} >= set(keys(range(20)))


def test_a_subsample_is_even_and_bounded() -> None:

    sample = Subsample()
    for start in range(0, 1_000_000, 70_000):
        sample.add(np.arange(start, min(start + 70_000, 1_000_000), dtype=np.float64))
    assert len(sample.values) <= 200_000
    kept = mixed(np.arange(1_000_000).astype(np.uint64)) % np.uint64(sample.stride) == 0
    assert sample.values == np.flatnonzero(kept).tolist()
    assert sample.mean == 499_999.5


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_subsample_falls_in_step_with_nothing(period: int) -> None:
    sample = Subsample()
    for _ in range(200):
        sample.add(np.arange(4096, dtype=np.float64) % period)
    assert sample.stride >= 4
    assert sample.mean == (period - 1) / 2
    shares = np.bincount(np.array(sample.values, dtype=np.int64), minlength=period) / len(sample.values)
    assert np.abs(shares - 1 / period).max() < 0.005


def test_facts_count_everything_once(location: str) -> None:
    facts = sample_facts(StreamReader(open_store(location)))
    assert (facts.num_records, facts.num_tokens) == (40, 320)
    assert sum(facts.head_sizes.values()) == 320


def test_a_process_that_ends_right_after_reading_ends_well(location: str) -> None:
    # Threads that still hold bytes of Python's when the interpreter goes would abort it, about every second time.
    command = [sys.executable, "-m", "cong.cli", "stream", "tail", location]
    ended = [subprocess.run(command, capture_output=True, timeout=60, check=False) for _ in range(4)]
    assert [(done.returncode, done.stderr) for done in ended] == [(0, b"")] * 4


def test_whoever_has_read_enough_ends_the_command_without_a_word(location: str) -> None:
    command = [sys.executable, "-m", "cong.cli", "stream", "tail", location]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # long before anything is written, as `head` does it after some lines
        assert process.stderr.read() == b""
        assert process.wait(60) == BROKEN_PIPE
