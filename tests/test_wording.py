"""What pydantic and the system find wrong is told by its causes, in words of ours."""

import errno

import pytest
from pydantic import BaseModel, ValidationError

from cong.errors import MachineRefusal
from cong.schemas import Prompt, SamplingParameters
from cong.service.openai import CompletionRequest
from cong.wire import SampleCall
from cong.wording import causes, first_cause, of_the_machine, told_by_the_machine, with_remedy


class Pair(BaseModel):
    """Something that holds a record."""

    prompt: Prompt


def found(model: type[BaseModel], content: object) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(content)
    return causes(caught.value.errors())


def test_what_follows_from_a_cause_is_not_told() -> None:
    (cause,) = found(SampleCall, {"prompts": [{"token_ids": [-1]}]})
    assert cause == ("prompts.0.token_ids.0", "Input should be greater than or equal to 0")
    ((name, words),) = found(Prompt, {"text": "a\ud800"})
    assert name == "text"
    assert words.endswith("it holds half of a surrogate pair")


def test_a_list_that_is_short_by_itself_is_told() -> None:
    assert found(SampleCall, {"prompts": []}) == [
        ("prompts", "It should have at least 1 item, not 0"),
    ]


def test_a_field_that_does_not_exist_is_not_told_as_an_input() -> None:
    assert found(SampleCall, {"prompts": ["a"], "top": 1}) == [("top", "is not known here")]


@pytest.mark.parametrize("value", ["perhaps", [], 2])
def test_yes_or_no_is_asked_for_as_it_is_written(value: object) -> None:
    assert found(SamplingParameters, {"ignore_eos": value}) == [("ignore_eos", "Input should be true or false")]


def test_names_are_those_of_fields_and_not_of_the_branches_of_a_union() -> None:
    ((name, words),) = found(CompletionRequest, {"model": "m", "prompt": "a", "stop": {}})
    assert (name, words) == ("stop", "Input should be a valid string, or: Input should be a valid list")
    assert found(Pair, {"prompt": 3}) == [("prompt", "Input should be a valid dictionary")]


def test_our_own_words_come_without_a_preface() -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingParameters.model_validate({"alpha": -1})
    assert first_cause(caught.value.errors(), "parameters") == (
        "parameters",
        "alpha is -1; it must be a number from 0 to 100",
    )


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room"), (errno.EISDIR, "check the path"), (errno.EACCES, "the rights to it")],
)
def test_the_machine_is_told_apart_from_our_faults(number: int, remedy: str) -> None:
    assert remedy in (of_the_machine(OSError(number, "words", "some/file")) or "")
    assert "some/file" in (of_the_machine(OSError(number, "words", "some/file")) or "")


def test_whoever_names_a_path_that_is_not_there_tells_what_helps() -> None:
    assert with_remedy(FileNotFoundError(errno.ENOENT, "words")) == "words; check the path"
    assert with_remedy(OSError("no number")) == "no number"


def test_what_may_be_a_fault_of_ours_keeps_its_traceback() -> None:
    assert of_the_machine(FileNotFoundError(errno.ENOENT, "words", "some/file")) is None
    assert of_the_machine(PermissionError(errno.EPERM, "words")) is None  # such as a signal to a process
    assert of_the_machine(OSError("no number")) is None


def test_around_a_command_what_the_machine_refuses_is_an_error_of_ours_and_a_bug_stays_one() -> None:
    with pytest.raises(MachineRefusal, match="some/file cannot be used: words; make room"), told_by_the_machine():
        raise OSError(errno.ENOSPC, "words", "some/file")
    with pytest.raises(FileNotFoundError), told_by_the_machine():
        raise FileNotFoundError(errno.ENOENT, "words", "some/file")
