import json
import logging
import re
import sys
from collections.abc import Iterator
from io import StringIO

import pytest

from cong.telemetry import JsonFormatter, configure_logging, progress, track


class Terminal(StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Time that moves only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def run_plain(num_steps: int, step_s: float, **fields: float) -> list[str]:
    clock, out = Clock(), StringIO()
    with progress("sampling", num_steps, unit="samples", stream=out, clock=clock) as bar:
        for _ in range(num_steps):
            clock.now_s += step_s
            bar.advance(1, **fields)
    return out.getvalue().splitlines()


def test_short_work_off_a_terminal_is_two_lines() -> None:
    assert run_plain(1000, 0.001) == [
        "sampling: started (1,000 of 1,000 to do)",
        "sampling: done, 1,000 in 0:01, 1,000.0 samples/s",
    ]


@pytest.mark.parametrize(("num_steps", "step_s"), [(100_00, 0.01), (100, 1.0), (10, 10.0)])
def test_long_work_off_a_terminal_writes_one_line_in_ten_seconds(num_steps: int, step_s: float) -> None:
    lines = run_plain(num_steps, step_s, loss=0.25)
    assert 9 <= len(lines) - 2 <= 10


def test_off_a_terminal_there_are_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    clock, out = Clock(), StringIO()
    with progress("bad\x1b[31m\rlabel\n", 2, stream=out, clock=clock) as bar:
        clock.now_s += 11
        bar.advance(note="\x1b[2J\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out.getvalue())
    assert len(out.getvalue().splitlines()) == 3


def test_a_plain_line_has_count_rate_elapsed_and_remaining_time_and_fields() -> None:
    clock, out = Clock(), StringIO()
    with progress("training", 400, stream=out, clock=clock) as bar:
        clock.now_s += 20
        bar.advance(100, loss=0.123456, reward=0.5)
    assert out.getvalue().splitlines()[1] == (
        "training: 100 of 400 (25%), 5.0/s, 0:20 elapsed, 1:00 left, loss=0.1235 reward=0.5"
    )


def test_work_done_before_counts_as_done_and_not_as_speed() -> None:
    clock, out = Clock(), StringIO()
    with progress("sampling", 100, start=90, stream=out, clock=clock) as bar:
        clock.now_s += 10
        bar.advance(5)
    lines = out.getvalue().splitlines()
    assert lines[0] == "sampling: started (10 of 100 to do)"
    assert lines[1] == "sampling: 95 of 100 (95%), 2.0 s each, 0:10 elapsed, 0:10 left"


def test_work_that_fails_says_how_far_it_came() -> None:
    out = StringIO()

    def fail() -> None:
        with progress("sampling", 10, stream=out, clock=Clock()) as bar:
            bar.advance(3)
            raise KeyError("lost")

    with pytest.raises(KeyError):
        fail()
    assert out.getvalue().splitlines()[-1] == "sampling: stopped at 3 of 10 (30%) after 0:00"


def test_work_that_stops_before_its_end_is_not_called_done() -> None:
    out = StringIO()
    with progress("training", 10, stream=out, clock=Clock()) as bar:
        bar.advance(3)
    assert out.getvalue().splitlines()[-1] == "training: stopped at 3 of 10 (30%) after 0:00"


def test_quiet_work_writes_nothing() -> None:
    out = Terminal()
    with progress("sampling", 10, is_quiet=True, stream=out) as bar:
        bar.advance(10)
    assert out.getvalue() == ""


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("counting: started (3 of 3 to do)\ncounting: done, 3 in ")


def test_the_length_of_an_iterator_may_be_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(track(iter(range(4)), "summing")) == 6
    assert capsys.readouterr().err.startswith("summing: started\nsumming: done, 4 in ")


def test_a_terminal_gets_a_live_bar_with_count_and_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    out = Terminal()
    with progress("training [stage]", 10, stream=out) as bar:
        bar.advance(10, loss=0.25)
    assert "\x1b[" in out.getvalue()
    for piece in ("training [stage]", "10/10", "loss=0.25"):
        assert piece in out.getvalue()


@pytest.mark.parametrize("label", ["training dpo", "5. stage 2: DPO, contrastive over the model's own samples"])
def test_a_row_is_one_line_on_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    out, clock = Terminal(), Clock()
    with progress(label, 1250, unit="steps", stream=out, clock=clock) as bar:
        clock.now_s += 100.0
        bar.advance(1250, loss=0.25, tokens_per_s=17780.0, arithmetic="4.7%", grad_norm=2.783, bottleneck="compute")
    last = out.getvalue().rsplit("\x1b[2K", 1)[-1]
    shown = re.sub(r"\x1b\[[0-9;?]*[a-z]", "", last, flags=re.I).splitlines()
    assert shown[0].startswith(label[:12])
    assert "1250/1250 12.5 steps/s 0:" in shown[0]
    assert "loss=0.25 tok" in shown[0]
    assert len(shown) == 1
    assert len(shown[0]) <= 80


def test_a_bar_inside_another_shares_its_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    out = Terminal()
    with progress("chain", 2, stream=out) as outer:
        for _ in range(2):
            with progress("stage", 5, stream=out) as inner:
                inner.advance(5)
            outer.advance()
    hide_cursor = "\x1b[?25l"
    assert out.getvalue().count(hide_cursor) == 1
    last_row = [line for line in out.getvalue().splitlines() if "/" in line][-1]
    assert "chain" in last_row
    assert "2/2" in last_row
    with progress("next", 1, stream=(after := Terminal())) as bar:
        bar.advance()
    assert "next" in after.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    with progress("training", 1, stream=out) as bar:
        bar.advance()
    assert "\x1b" not in out.getvalue()


def test_a_json_line_holds_time_level_logger_message_and_extra_fields(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO", json=True)
    logging.getLogger("cong.engine").info("step %d\ndone", 7, extra={"batch": 3, "path": StringIO, "message2": "é"})
    logging.getLogger("cong.engine").debug("not shown")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", entry.pop("time"))
    assert entry == {
        "level": "INFO",
        "logger": "cong.engine",
        "message": "step 7\ndone",
        "batch": 3,
        "path": str(StringIO),
        "message2": "é",
    }


def test_a_json_line_holds_the_exception() -> None:
    try:
        raise KeyError("lost")
    except KeyError:
        record = logging.LogRecord("cong", logging.ERROR, "file", 1, "failed", (), sys.exc_info())
    assert "KeyError: 'lost'" in json.loads(JsonFormatter().format(record))["exception"]


def test_numbers_that_json_cannot_hold_become_text() -> None:
    record = logging.makeLogRecord({"msg": "x", "loss": float("nan"), "all": [float("inf"), 1.0], "one": {"a": 2}})

    def refuse(name: str) -> float:
        raise AssertionError(f"not JSON: {name}")

    entry = json.loads(JsonFormatter().format(record), parse_constant=refuse)
    assert (entry["loss"], entry["all"], entry["one"]) == ("nan", ["inf", 1.0], {"a": 2})


def test_an_extra_field_cannot_replace_a_field_of_ours() -> None:
    record = logging.makeLogRecord({"msg": "x", "levelname": "INFO", "level": "forged", "time": "never"})
    entry = json.loads(JsonFormatter().format(record))
    assert entry["level"] == "INFO"
    assert entry["time"] != "never"


def test_configuring_twice_writes_each_line_once(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO", json=True)
    configure_logging("warning")
    logging.getLogger("cong").info("hidden")
    logging.getLogger("cong").warning("shown")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING cong: shown")


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(AssertionError, match="unknown log level 'LOUD'"):
        configure_logging("LOUD")
