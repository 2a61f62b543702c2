"""The sampling job against a real service: killed, stopped and started again, every prompt has its samples once."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.sample import EXIT_DONE, EXIT_FAILURES, EXIT_STOPPED, EXIT_WRONG, main
from serve.ports import free_port
from tests.client.service_process import ROOT, HeldService

NUM_PROMPTS = 40
LIMIT_S = 180.0


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The job sets up the logging of a whole process."""
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldService]:
    monkeypatch.delenv("CONG_API_KEY", raising=False)
    with HeldService(tmp_path) as running:
        yield running


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    write_prompts(path, range(NUM_PROMPTS))
    return path


def write_prompts(path: Path, numbers: range) -> None:
    words = {number: "abcdefghij"[number // 10] + "klmnopqrst"[number % 10] for number in numbers}
    rows = [{"question": f"say {word}", "prompt_id": f"p{number}"} for number, word in words.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def arguments(service: HeldService, *overrides: str) -> list[str]:
    settings = [
        f"output_dir={service.folder / 'run'}",
        f"sampling_job.url={service.url}",
        f"sampling_job.prompts.source={service.folder / 'prompts.jsonl'}",
        "sampling_job.prompts.prompt_column=question",
        "sampling_job.num_samples=2",
        "sampling_job.store=local",
        "sampling_job.in_flight=4",
        "sampling.max_tokens=16",
        *overrides,
    ]
    return [part for setting in settings for part in ("--set", setting)]


def expected(numbers: range = range(NUM_PROMPTS)) -> Counter[tuple[str, int]]:
    return Counter((f"p{number}", index) for number in numbers for index in (0, 1))


def stored(service: HeldService) -> Counter[tuple[str, int]]:
    return Counter((record.prompt.prompt_id, record.sample_index) for record in service.records())


def failures(service: HeldService) -> list[dict[str, object]]:
    return [json.loads(line) for line in (service.folder / "run/sampling/failures.jsonl").read_text().splitlines()]


def test_every_prompt_gets_its_samples_and_a_second_run_asks_for_nothing(
    service: HeldService, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(service)) == EXIT_DONE
    assert "40 prompts done (80 samples, 0 of them were in the stream" in capsys.readouterr().out
    assert stored(service) == expected()
    assert failures(service) == []
    assert "sampling_job:" in (service.folder / "run/sampling/config.yaml").read_text()
    assert main(arguments(service)) == EXIT_DONE
    assert "0 prompts done (0 samples" in (out := capsys.readouterr().out)
    assert "40 were done before" in out
    write_prompts(prompts, range(NUM_PROMPTS + 5))
    assert main(arguments(service)) == EXIT_DONE
    assert "5 prompts done (10 samples" in capsys.readouterr().out
    assert stored(service) == expected(range(NUM_PROMPTS + 5))


def test_without_the_progress_file_the_service_says_what_is_there(
    service: HeldService, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(service)) == EXIT_DONE
    (service.folder / "run/sampling/progress").unlink()
    service.stop()  # and with it whatever it remembers of requests
    service.start()
    assert main(arguments(service)) == EXIT_DONE
    assert main(arguments(service, "sampling_job.asks_again=true")) == EXIT_DONE
    assert capsys.readouterr().out.count("(80 samples, 80 of them were in the stream") == 2
    assert stored(service) == expected()


def start(service: HeldService, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.sample", *arguments(service, "sampling_job.in_flight=2", *overrides)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_records(service: HeldService, process: subprocess.Popen[str], num_records: int) -> None:
    """The job waits for more from then on, until the service may go on."""
    until_s = time.monotonic() + LIMIT_S
    while len(service.records()) < num_records:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until_s, f"there are only {len(service.records())} records"
        time.sleep(0.02)


def test_killed_at_any_moment_and_started_again_nothing_is_missing_and_nothing_is_twice(
    service: HeldService, prompts: Path
) -> None:
    for num_wanted in (1, 15, 40):
        service.max_records = num_wanted
        process = start(service)
        wait_for_records(service, process, num_wanted)
        process.kill()
        process.communicate(timeout=LIMIT_S)
    assert 40 <= len(service.records()) < 80
    service.max_records = math.inf
    last = start(service)
    out, err = last.communicate(timeout=LIMIT_S)
    assert last.returncode == EXIT_DONE, err
    assert "0 given up" in out
    assert stored(service) == expected()
    assert len({record.key for record in service.records()}) == 80


def test_a_signal_lets_what_is_in_flight_finish_and_says_that_there_is_more(
    service: HeldService, prompts: Path
) -> None:
    service.max_records = 6
    process = start(service)
    wait_for_records(service, process, 6)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert any("asked to stop by SIGTERM" in line for line in process.stderr)
    service.max_records = math.inf
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == EXIT_STOPPED, err
    assert "stopped by SIGTERM; 0 prompts were cut off" in out
    num_done = len((service.folder / "run/sampling/progress").read_text().splitlines()) - 1
    assert 0 < num_done < NUM_PROMPTS
    assert len(service.records()) == 2 * num_done
    again = start(service)
    out, err = again.communicate(timeout=LIMIT_S)
    assert again.returncode == EXIT_DONE, err
    assert f"{NUM_PROMPTS - num_done} prompts done" in out
    assert stored(service) == expected()


def test_an_interrupt_before_the_first_prompt_and_a_second_one_end_the_job_in_one_line(
    service: HeldService, prompts: Path
) -> None:
    process = start(service, f"sampling_job.url=http://127.0.0.1:{free_port()}")
    assert process.stderr is not None
    assert any("is waited for" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (EXIT_STOPPED, "jobs.sample: interrupted; run it again for the rest\n")
    service.max_records = 6
    process = start(service)
    wait_for_records(service, process, 6)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert any("asked to stop by SIGINT" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == EXIT_STOPPED
    assert err.endswith("jobs.sample: interrupted; run it again for the rest\n")
    assert "Traceback" not in err


def test_a_service_that_is_away_for_a_while_is_waited_for(service: HeldService, prompts: Path) -> None:
    service.max_records = 6
    process = start(service)
    wait_for_records(service, process, 6)
    service.stop()
    service.start()
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == EXIT_DONE, err + out
    assert stored(service) == expected()


def test_what_cannot_be_served_is_listed_with_its_reason_and_tried_again(
    service: HeldService, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = prompts.read_text()
    long = json.dumps({"question": "S" * 9000, "prompt_id": "long"})
    prompts.write_text(f'{long}\n{{"question": null, "prompt_id": "empty"}}\n{{not json\n{good}')
    assert main(arguments(service)) == EXIT_FAILURES
    assert "3 given up" in capsys.readouterr().out
    found = {str(line["error"]): line for line in failures(service) if line["error"] != "BadRow"}
    assert set(found) == {"PromptTooLong"}
    assert found["PromptTooLong"]["prompt"]["prompt_id"] == "long"  # type: ignore[index]
    bad = [line["where"] for line in failures(service) if line["error"] == "BadRow"]
    assert bad == [f"{prompts}:2", f"{prompts}:3"]
    assert stored(service) == expected()
    assert main(arguments(service)) == EXIT_FAILURES
    assert len(failures(service)) == 3
    prompts.write_text(good)
    assert main(arguments(service)) == EXIT_DONE
    assert failures(service) == []


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    service: HeldService, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(service), "--dry-run"]) == EXIT_DONE
    plan = capsys.readouterr().out
    assert "prompts: 40 in" in plan
    assert "done before: 0; to be asked for: 40" in plan
    assert not (service.folder / "run").exists()
    assert service.records() == []
    assert main(arguments(service, "sampling_job.prompts.max_prompts=10")) == EXIT_DONE
    assert main([*arguments(service), "--dry-run"]) == EXIT_DONE
    assert "done before: 10; to be asked for: 30" in capsys.readouterr().out


def test_other_parameters_are_other_work(service: HeldService, prompts: Path) -> None:
    few = "sampling_job.prompts.max_prompts=3"
    assert main(arguments(service, few)) == EXIT_DONE
    assert main(arguments(service, few, "sampling.seed=1")) == EXIT_DONE
    records = service.records()
    assert Counter(record.parameters.seed for record in records) == {0: 6, 1: 6}


@pytest.mark.parametrize(
    ("override", "complaint", "code"),
    [
        ("sampling_job.store=shared", "sampling_job.store is 'shared'", EXIT_WRONG),
        ("sampling_job.prompts.source=''", "prompts.source is empty", EXIT_WRONG),
        ("sampling_job.prompts.source=nowhere.jsonl", "there is no such file", EXIT_WRONG),
        ("sampling_job.in_flight=0", "sampling_job.in_flight is 0", EXIT_WRONG),
        ("sampling_job.inflight=3", "nearest known one is 'sampling_job.in_flight'", EXIT_WRONG),
        ("sampling_job.url=localhost", "is no address", EXIT_WRONG),
    ],
)
def test_wrong_settings_are_named_before_anything_is_asked(
    service: HeldService,
    prompts: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    complaint: str,
    code: int,
) -> None:
    assert main(arguments(service, override)) == code
    assert complaint in capsys.readouterr().err
    assert service.records() == []


def test_no_service_and_no_prompts_are_told_apart(
    service: HeldService, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = f"sampling_job.url=http://127.0.0.1:{free_port()}"
    assert main(arguments(service, nowhere, "sampling_job.ready_s=0.5")) == EXIT_STOPPED
    assert "run it again later" in capsys.readouterr().err
    prompts.write_text("\n")
    assert main(arguments(service)) == EXIT_WRONG
    assert "holds no prompts" in capsys.readouterr().err


def test_two_jobs_do_not_share_a_folder(
    service: HeldService, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.max_records = 1
    process = start(service)
    wait_for_records(service, process, 1)
    assert main(arguments(service)) == EXIT_WRONG
    assert "in use by another run" in capsys.readouterr().err
    process.kill()
    process.communicate(timeout=LIMIT_S)
