"""Records: what they refuse, what they keep, and that a key names a question and nothing else."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cong.schemas import (
    SCHEMA_VERSION,
    Completion,
    Message,
    NetworkIdentity,
    PreferenceRecord,
    Prompt,
    SampleRecord,
    SampleRequest,
    SamplingParameters,
    ScoreRequest,
    sample_keys,
)
from cong.service.openai import CompletionRequest
from cong.wire import SampleCall

PAIR = (
    NetworkIdentity(role="aligned", name="a", fingerprint="f1"),
    NetworkIdentity(role="base", name="b", fingerprint="f2"),
)


def record() -> SampleRecord:
    return SampleRecord(
        key="s-1",
        kind="contrastive",
        prompt=Prompt(text="hello"),
        prompt_token_ids=(1, 2),
        completion_text="you",
        completion_token_ids=(3, 4),
        logprobs={"aligned": (-1.0, -0.5), "base": (-2.0, -0.75)},
        mixture_logprobs=(-0.1, -0.2),
        head_sizes=(3, 1),
        finish_reason="stop",
        parameters=SamplingParameters(),
        sample_index=0,
        networks=PAIR,
        tokenizer_fingerprint="t",
    )


@pytest.mark.parametrize(
    ("asked", "content"),
    [
        (SamplingParameters, {"max_tokens": True}),
        (SamplingParameters, {"temperature": False}),
        (SampleRequest, {"prompt": {"text": "a"}, "num_samples": True}),
        (SampleCall, {"prompt": "a", "deadline_s": True}),
        (SampleCall, {"prompt": "a", "parameters": {"seed": False}}),
        (CompletionRequest, {"model": "cong", "prompt": "a", "n": True}),
    ],
)
def test_yes_is_no_number(asked: type[BaseModel], content: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is yes or no, and a number is needed"):
        asked.model_validate(content)
    with pytest.raises(ValidationError, match="is yes or no, and a number is needed"):
        asked.model_validate_json(json.dumps(content))


@pytest.mark.parametrize("token_id", [True, 1.0, "1"])
def test_a_token_id_is_written_as_a_whole_number(token_id: object) -> None:
    for asked, content in (
        (SampleCall, {"prompts": [{"token_ids": [token_id]}]}),
        (CompletionRequest, {"model": "cong", "prompt": [[token_id]]}),
    ):
        with pytest.raises(ValidationError, match="Input should be a valid integer"):
            asked.model_validate(content)


def test_every_record_survives_json() -> None:
    pair = PreferenceRecord(
        prompt=Prompt(messages=(Message(role="user", content="\ud7ff <b>"),)),
        chosen=Completion(text="yes"),
        rejected=Completion(text="no", token_ids=(1,), key="s-2"),
    )
    for value in (record(), pair, SampleRequest(prompt=Prompt(token_ids=(5,)), num_samples=3)):
        assert type(value).model_validate_json(value.model_dump_json()) == value


def test_records_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        record().key = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        SamplingParameters.model_validate({"aplha": 0.4})


def test_a_record_of_a_later_version_is_refused() -> None:
    with pytest.raises(ValidationError, match="schema_version"):
        SampleRecord.model_validate(record().model_dump() | {"schema_version": SCHEMA_VERSION + 1})


def test_implicit_reward_is_the_summed_log_ratio() -> None:
    assert record().implicit_reward_sum == pytest.approx(1.25)
    assert record().implicit_reward_mean == pytest.approx(0.625)
    plain = SampleRecord.model_validate(record().model_dump() | {"logprobs": {"aligned": (-1.0, -0.5)}})
    assert plain.implicit_reward_sum is None
    assert plain.implicit_reward_mean is None


def test_per_token_fields_have_one_entry_per_token() -> None:
    with pytest.raises(ValidationError, match=r"2 tokens, but .*head_sizes"):
        SampleRecord.model_validate(record().model_dump() | {"head_sizes": (1,)})


@pytest.mark.parametrize(
    "content",
    [{}, {"text": "a", "token_ids": (1,)}, {"token_ids": (-1,)}, {"messages": ({"role": "x", "content": ""},)}],
)
def test_a_prompt_has_exactly_one_valid_form(content: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Prompt.model_validate(content)


def test_a_prompt_id_is_its_content_unless_given() -> None:
    assert Prompt(text="a").prompt_id == Prompt(text="a").prompt_id
    assert len({Prompt(text="a").prompt_id, Prompt(text="b").prompt_id, Prompt(token_ids=(1,)).prompt_id}) == 3
    assert Prompt(text="a", prompt_id="mine").prompt_id == "mine"


@given(st.floats(0.0, 100.0))
def test_alpha_is_kept_as_weights(alpha: float) -> None:
    parameters = SamplingParameters.model_validate({"alpha": alpha})
    assert parameters.weights == (1.0, alpha - 1.0)
    assert parameters.alpha == pytest.approx(alpha, abs=1e-12)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"alpha": 0.4, "weights": (1.0, -0.6)}, "alpha or weights"),
        ({"alpha": -0.1}, "from 0 to 100"),
        ({"alpha": "much"}, "from 0 to 100"),
        ({"weights": (0.0, 0.0)}, "not all be 0"),
        ({"weights": (1.0, math.nan)}, "finite"),
        ({"weights": (1.0,), "network_temperatures": (1.0, 2.0)}, "one each"),
        ({"network_temperatures": (1.0, 0.0)}, "greater than or equal to 0.001"),
        ({"network_temperatures": (1.0, 1e-40)}, "greater than or equal to 0.001"),
        ({"temperature": 1e-40}, "0, which is greedy, or at least 0.001"),
        ({"top_p": 5e-324}, "top_p"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),
        ({"min_tokens": 9, "max_tokens": 8}, "more than max_tokens"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": math.inf}, "temperature"),
        ({"stop": ("",)}, "stop"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_parameters_out_of_bounds_are_refused(content: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SamplingParameters.model_validate(content)


def test_one_stop_string_is_a_tuple_of_one() -> None:
    assert SamplingParameters.model_validate({"stop": "\n"}).stop == ("\n",)


def test_kind_says_whether_networks_are_contrasted() -> None:
    assert SamplingParameters.contrastive(0.4).kind == "contrastive"
    assert SamplingParameters.contrastive(1.0).kind == "plain"
    assert SamplingParameters.plain().kind == "plain"
    assert SamplingParameters(weights=(1.0, 1.0, -1.0)).alpha is None


def test_a_key_changes_with_every_part_of_the_question_and_only_with_it() -> None:
    question = (PAIR, "t", (1, 2), SamplingParameters(), (0,))
    renamed = tuple(network.model_copy(update={"name": "elsewhere"}) for network in PAIR)
    assert sample_keys(*question) == sample_keys(renamed, *question[1:])
    others = [
        (PAIR[::-1], "t", (1, 2), SamplingParameters(), (0,)),
        (PAIR, "u", (1, 2), SamplingParameters(), (0,)),
        (PAIR, "t", (1, 3), SamplingParameters(), (0,)),
        (PAIR, "t", (1, 2), SamplingParameters(seed=1), (0,)),
        (PAIR, "t", (1, 2), SamplingParameters(), (1,)),
    ]
    assert len({sample_keys(*question), *(sample_keys(*other) for other in others)}) == 6


def test_a_key_is_stable_across_releases() -> None:
    key, other = sample_keys(PAIR, "t", (1, 2), SamplingParameters(), (0, 12))
    assert key == "s-a5cf8ceeb977d203e3f714cc3d040f6d7a81c6e9"
    assert other == "s-47c16a8446ba29ccfcb2e2a33558a3a9d0d90736"


def test_a_score_request_names_one_completion() -> None:
    with pytest.raises(ValidationError, match="exactly one"):
        ScoreRequest(prompt=Prompt(text="a"))
    assert ScoreRequest(prompt=Prompt(text="a"), completion_text="").completion_token_ids == ()
