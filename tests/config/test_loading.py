"""Files and overrides: precedence, exact complaints, and that what is dumped loads again."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import Field

from cong.cli import main
from cong.config import RunConfig, dump_config, load_config
from cong.config.base import Settings
from cong.config.loading import parse_override
from cong.errors import ConfigError

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("**/*.yaml"))


class Inner(Settings):
    """A section."""

    learning_rate: float = 1e-3
    num_steps: int = 10


class Outer(Settings):
    """A configuration with sections of every shape."""

    name: str = "run"
    inner: Inner = Inner()
    named: Mapping[str, Inner] = Field(default_factory=dict)
    listed: tuple[Inner, ...] = ()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_later_files_win_and_overrides_win_over_all(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "name: a\ninner: {learning_rate: 1e-4, num_steps: 3}\n")
    second = write(tmp_path / "b.yaml", "inner: {num_steps: 4}\n")
    assert load_config(Outer, [first, second], ["inner.num_steps=5", "name=c"]) == Outer(
        name="c", inner=Inner(learning_rate=1e-4, num_steps=5)
    )
    assert load_config(Outer, [first, second]).inner == Inner(learning_rate=1e-4, num_steps=4)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("inner.lerning_rate=1", "unknown key 'inner.lerning_rate'; the nearest known one is 'inner.learning_rate'"),
        ("iner.num_steps=1", "unknown key 'iner'; the nearest known one is 'inner'"),
        ("num_steps=1", "unknown key 'num_steps'; the nearest known one is 'inner.num_steps'"),
        ("named.a.num_step=1", "unknown key 'named.a.num_step'; the nearest known one is 'named.a.num_steps'"),
        ("listed=[{nmu_steps: 1}]", "unknown key 'listed.0.nmu_steps'; the nearest known one is 'listed.0.num_steps'"),
        ("INNER.num_steps=1", "unknown key 'INNER'; the nearest known one is 'inner'"),
        ("inner.num_steps=many", "inner.num_steps is 'many'"),
        ("name=10", """name is 10: Input should be a valid string; YAML reads text so only in quotes: '"10"'"""),
        ("inner.learning_rate=.nan", "inner.learning_rate is nan"),
        ("inner=3", "inner is 3"),
        ("inner.num_steps=yes", "inner.num_steps is True: is yes or no, and a number is needed"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(override: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load_config(Outer, [], [override])


def test_all_wrong_settings_are_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.yaml", "nmae: x\ninner: {num_steps: many, extra: 1}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, [path])
    message = str(caught.value)
    assert "bad.yaml: 3 wrong setting(s)" in message
    assert all(name in message for name in ("nmae", "inner.num_steps", "inner.extra"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: a\nname: b\n", "'name' is given twice (line 2)"),
        ("inner: [1, 2\n", "is not YAML"),
        ("- a\n- b\n", "holds a list"),
        pytest.param("inner: " + "[" * 10_000, "bad.yaml is not YAML: maximum recursion depth", id="deep"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load_config(Outer, [write(tmp_path / "bad.yaml", text)])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.yaml: No such file"):
        load_config(Outer, [Path("nowhere.yaml")])


def test_an_override_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="the value is not YAML: maximum recursion depth"):
        load_config(Outer, [], ["inner=" + "[" * 10_000])


@pytest.mark.parametrize("assignment", ["inner", "=1", "a..b=1"])
def test_an_override_that_is_no_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(Outer, [], [assignment])


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(Outer, [write(tmp_path / "empty.yaml", "")]) == Outer()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "x"  # type: ignore[misc]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads_and_dumps_to_itself(path: Path, tmp_path: Path) -> None:
    config = load_config(RunConfig, [path])
    assert load_config(RunConfig, [write(tmp_path / "again.yaml", dump_config(config))]) == config


def test_there_are_shipped_configurations() -> None:
    assert CONFIGS


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("sampling.alpah", "sampling.alpha"),
        ("alpha", "sampling.alpha"),
        ("train.learning_rate", "train.optimizer.learning_rate"),
        ("evaluation.max_tokens", "evaluation.sampling.max_tokens"),
    ],
)
def test_of_several_places_the_one_that_is_near_is_named(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"the nearest known one is '{re.escape(meant)}'"):
        load_config(RunConfig, [], [f"{wrong}=1"])


def test_a_path_at_home_is_no_folder_named_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    config = load_config(
        RunConfig,
        [],
        ["output_dir=~/runs", "stream.location=~/stream", "evaluation.prompts=~/p.jsonl", "sampling.stop=~/"],
    )
    assert config.output_dir == Path("/home/ada/runs")
    assert (config.stream.location, config.evaluation.prompts) == ("/home/ada/stream", Path("/home/ada/p.jsonl"))
    assert config.sampling.stop == ("~/",)
    assert load_config(RunConfig, [], ["output_dir=a~/b"]).output_dir == Path("a~/b")


def test_the_check_finds_wrong_objectives_wherever_they_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path / "run.yaml",
        "train: {objective: {name: dpoo}}\npipeline: {prefer: {objective: {name: dpo, parameters: {betta: 1}}}}\n",
    )
    assert main(["config", "check", str(path)]) == 2
    told = capsys.readouterr().err
    assert "train.objective: objective 'dpoo' is not known: did you mean 'dpo'?" in told
    assert "pipeline.prefer.objective: objective 'dpo' has no parameter 'betta'" in told


@pytest.mark.parametrize(
    ("judge", "kind"), [("rewards", None), ("null", None), ("{}", None), ("{kind: [implicit]}", ["implicit"])]
)
def test_a_judge_without_a_kind_is_told_once_and_by_its_own_name(judge: str, kind: object) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, [], [f"evaluation.judges.rm={judge}"])
    _, *told = str(caught.value).splitlines()
    (line,) = told
    assert line.startswith("  evaluation.judges.rm is ")
    assert line.endswith(f"kind is {kind!r}; it must be one of program, implicit, reward_model")


def test_the_command_checks_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "run.yaml", "num_threads: 1\n")
    assert main(["config", "check", str(path)]) == 0
    assert "every setting is known" in capsys.readouterr().out
    assert main(["config", "check", str(path), "--dry-run", "--set", "num_threads=2"]) == 0
    assert "num_threads: 2" in capsys.readouterr().out
    assert main(["config", "check", str(path), "--set", "num_thread=2"]) == 2
    assert "nearest known one is 'num_threads'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["1e-4", "1E5", "+3e2", "-2.5e-1"])
def test_numbers_in_scientific_notation_are_numbers(text: str) -> None:
    _, value = parse_override(f"a={text}")
    assert value == float(text)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["sample", "--prompts", "p.txt", "--num-sampels", "2"],
            "--num-sampels 2; the nearest known one is --num-s",
        ),
        (["stream", "tail", "folder", "--folow"], "--folow; the nearest known one is --follow"),
        (["stream", "tail", "folder", "other"], "unrecognized arguments: other\n"),
        (["lab", "export", "--outt", "x"], "unrecognized arguments: --outt x\n"),
    ],
)
def test_an_unknown_option_is_told_by_its_command_with_the_nearest_one(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.startswith(f"usage: cong {argv[0]}")
