"""`cong sample --url` against a real service: the same file as on this machine, resumed in the same way."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cong.cli import main
from cong.schemas import SampleRecord
from tests.client.service_process import ServiceThread


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceThread]:
    with ServiceThread(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {c}", "prompt_id": c}) + "\n" for c in "abcdefgh"))
    return path


def run(service: ServiceThread, prompts: Path, *more: str, max_tokens: int = 6) -> int:
    out = ["--out", str(prompts.with_name("samples.jsonl"))] if "--store" not in more else []
    settings = ["--set", f"sampling.max_tokens={max_tokens}"]
    return main(["sample", "--prompts", str(prompts), "--url", service.url, *out, *settings, *more])


def samples(prompts: Path) -> list[SampleRecord]:
    lines = prompts.with_name("samples.jsonl").read_text().splitlines()
    return [SampleRecord.model_validate_json(line) for line in lines]


def test_a_second_run_asks_only_for_what_is_missing(
    service: ServiceThread, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prompts.with_name("samples.jsonl")
    assert run(service, prompts, "--num-samples", "2", "--in-flight", "3") == 0
    assert "16 samples of 8 prompts, 0 were there" in capsys.readouterr().err
    first = {record.key: record for record in samples(prompts)}
    assert {(r.prompt.prompt_id, r.sample_index) for r in first.values()} == {
        (c, i) for c in "abcdefgh" for i in (0, 1)
    }
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:9]) + lines[9][: len(lines[9]) // 2])  # killed in the middle of a line
    assert run(service, prompts, "--num-samples", "2") == 0
    told = capsys.readouterr().err
    assert "4 were there" in told or "3 were there" in told
    again = samples(prompts)
    assert len(again) == 16
    assert {r.key: r.completion_token_ids for r in again} == {k: r.completion_token_ids for k, r in first.items()}
    assert run(service, prompts, "--num-samples", "2") == 0
    assert "0 samples of 0 prompts, 8 were there" in capsys.readouterr().err
    assert run(service, prompts, "--num-samples", "3") == 0
    assert len(samples(prompts)) == len({record.key for record in samples(prompts)}) == 24


def test_the_file_continues_what_was_begun_on_this_machine(service: ServiceThread, prompts: Path) -> None:
    models = service.config.models
    here = [
        f"models.aligned.source={models.aligned.source}",
        f"models.base.source={models.base.source}",
        "models.dtype=float32",
        "sampling.max_tokens=6",
        "engine.kv_memory_bytes=4000000",
    ]
    whole = prompts.read_text()
    prompts.write_text("".join(whole.splitlines(keepends=True)[:5]))
    out = str(prompts.with_name("samples.jsonl"))
    overrides = [part for setting in here for part in ("--set", setting)]
    assert main(["sample", "--prompts", str(prompts), "--out", out, *overrides]) == 0
    begun = samples(prompts)
    prompts.write_text(whole)
    assert run(service, prompts) == 0
    assert samples(prompts)[:5] == begun
    assert [record.prompt.prompt_id for record in samples(prompts)[5:]] == list("fgh")


def test_the_service_keeps_samples_when_asked(service: ServiceThread, prompts: Path) -> None:
    before = len(service.records())
    assert run(service, prompts, "--store", "local", max_tokens=7) == 0
    assert run(service, prompts, "--store", "local", max_tokens=7) == 0
    stored = service.records()[before:]
    assert sorted(record.prompt.prompt_id for record in stored) == list("abcdefgh")


def test_what_the_file_has_is_stored_when_that_is_asked_for(
    service: ServiceThread, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(service.records())
    assert run(service, prompts, max_tokens=5) == 0
    out = prompts.with_name("samples.jsonl")
    content = out.read_bytes()
    capsys.readouterr()
    assert run(service, prompts, "--store", "local", "--out", str(out), max_tokens=5) == 0
    assert "0 samples of 0 prompts, 8 were there" in capsys.readouterr().err
    assert out.read_bytes() == content
    assert len(service.records()) == before + 8


def test_prompts_whose_tokens_are_equal_are_told_and_counted_once(
    service: ServiceThread, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The lab's tokenizer has one token for every letter that it does not know.
    prompts.write_text("".join(json.dumps({"prompt": f"say {c}", "prompt_id": c}) + "\n" for c in "àáâ"))
    for num_new in (1, 0):
        assert run(service, prompts) == 0
        told = capsys.readouterr().err
        assert f"{num_new} samples of {num_new} prompts, {3 - num_new} were there" in told
        assert "prompts with the tokens of another one: 2; they have its samples" in told
        assert len(samples(prompts)) == 1


def test_what_is_given_up_is_named_and_the_rest_is_there(
    service: ServiceThread, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts.write_text(json.dumps({"prompt": "s" * 9000, "prompt_id": "long"}) + "\n" + prompts.read_text())
    assert run(service, prompts) == 1
    told = capsys.readouterr().err
    assert "long: PromptTooLong" in told
    assert "would be again: 1; change prompts or settings" in told
    assert "run it again" not in told, "it would be refused again"
    assert len(samples(prompts)) == 8


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--num-samples", "0"], "--num-samples is 0; give at least 1"),
        (["--in-flight", "0"], "--in-flight is 0; give at least 1"),
        (["--store", "shared"], "--store is shared"),
        (["--set", "sampling.max_tokens=100000"], "new tokens; lower sampling.max_tokens"),
        (["--num-samples", "4096"], "4096 samples of each prompt are asked for, and a request to"),
        (["--set", "sampling.weights=[1.0]"], "sampling.weights has 1 entries"),
        (["--prompts", "nowhere.jsonl"], "cannot read prompts from nowhere.jsonl"),
    ],
)
def test_wrong_options_are_named(
    service: ServiceThread, prompts: Path, capsys: pytest.CaptureFixture[str], more: list[str], complaint: str
) -> None:
    assert run(service, prompts, *more) == 2
    assert complaint in capsys.readouterr().err


def test_an_address_as_openai_s_clients_take_it_is_told_at_once(
    service: ServiceThread, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(service, prompts, "--url", f"{service.url}/v1/", "--set", "sampling_job.ready_s=3600") == 2
    assert f"{service.url}/v1 has no /health" in (told := capsys.readouterr().err)
    assert told.rstrip().endswith(f"give {service.url}")


def test_samples_have_to_go_somewhere(
    service: ServiceThread, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["sample", "--prompts", str(prompts)]
    assert main([*asked, "--url", service.url]) == 2
    assert "nothing would keep the samples; give --out, or --store" in capsys.readouterr().err
    assert main([*asked, "--url", service.url, "--stream", "s"]) == 2
    assert "with --url the service keeps its own" in capsys.readouterr().err
    assert main(asked) == 2
    assert "give --out or --stream" in capsys.readouterr().err
    assert main([*asked, "--out", "x", "--store", "local"]) == 2
    assert "it needs --url" in capsys.readouterr().err
    prompts.write_text("\n")
    assert main([*asked, "--url", service.url, "--store", "local"]) == 2
    assert "holds no prompts" in capsys.readouterr().err
