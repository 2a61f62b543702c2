"""Answers, what is said of them, and how stages turn them into training examples."""

import math

import pytest
import torch
from transformers import LlamaForCausalLM

from cong.config.lab import LabConfig
from cong.lab.answers import Answer, ask
from cong.lab.networks import EOS_ID, decode, prompt_ids, response_ids
from cong.lab.sampler import ReferenceSample
from cong.lab.stages import (
    align,
    draw_preferences,
    held_out_prompts,
    ideal_examples,
    imitate,
    imitation_examples,
    plain_parameters,
    prefer,
    preference_examples,
    training_prompts,
)
from cong.lab.summaries import head_health, relate_rewards, summarize
from cong.lab.world import gold_reward, ideal_response, is_test_only, judge, parts_of_prompt
from cong.schemas import FinishReason, SamplingParameters

CONFIG = LabConfig.model_validate(
    {
        "num_training_prompts": 30,
        "max_response_tokens": 10,
        "alignment": {"num_pairs": 24},
        "evaluation": {"num_prompts": 20},
    }
)


def answer(prompt: str, text: str, finish_reason: FinishReason = "stop", ratio: float = 0.0) -> Answer:
    token_ids = response_ids(text) if finish_reason == "stop" else response_ids(text)[:-1]
    base = tuple(-1.0 for _ in token_ids)
    sample = ReferenceSample(
        token_ids=token_ids,
        logprobs=(tuple(value + ratio for value in base), base),
        mixture_logprobs=base,
        head_sizes=tuple(1 for _ in token_ids),
        num_floored=0,
        finish_reason=finish_reason,
    )
    return Answer(prompt, text, sample, judge(prompt, text))


def test_answers_are_judged_as_their_text_and_do_not_depend_on_batches(
    networks: list[LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = held_out_prompts(CONFIG)
    plain = plain_parameters(CONFIG)
    answers = ask(networks[:1], prompts, plain, "test", 0)
    monkeypatch.setattr("cong.lab.answers.BATCH_SIZE", 7)
    assert [each.sample.token_ids for each in ask(networks[:1], prompts, plain, "test", 0)] == [
        each.sample.token_ids for each in answers
    ]
    for each in answers:
        assert each.text == decode(each.sample.token_ids)
        assert each.reward == gold_reward(each.prompt, each.text)
        assert each.is_truncated == (each.sample.token_ids[-1] != EOS_ID)


def test_prompts_get_random_numbers_of_their_own(networks: list[LlamaForCausalLM]) -> None:
    same = ["Sdbgaf="] * 20
    texts = {each.text for each in ask(networks[:1], same, plain_parameters(CONFIG), "test", 0)}
    assert len(texts) > 15


def test_purpose_and_seed_decide_the_random_numbers(networks: list[LlamaForCausalLM]) -> None:
    def texts(purpose: str, seed: int) -> list[str]:
        answers = ask(networks[:1], training_prompts(CONFIG)[:5], plain_parameters(CONFIG), purpose, seed)
        return [each.text for each in answers]

    assert texts("a", 0) == texts("a", 0)
    assert texts("a", 0) != texts("b", 0)
    assert texts("a", 0) != texts("a", 1)


def test_summary_by_hand() -> None:
    answers = [
        answer("Sdbgaf=", ">abdfg."),
        answer("Sdbgaf=", "!abdfg;ab"),
        answer("Sdbgaf=", ""),
        answer("Sdbgaf=", "xabdfg".replace("x", "b"), "length"),
    ]
    summary = summarize(answers)
    assert summary.reward.mean == pytest.approx((1.0 + 0.5 + 0.0 + 0.5 * (5 / 6) ** 3) / 4)
    assert summary.good_opening_share == 0.25
    assert summary.exact_body_share == 0.5
    assert summary.good_ending_share == 0.25
    assert summary.mean_num_tokens == (8 + 10 + 1 + 6) / 4
    assert summary.empty_share == 0.25
    assert summary.truncated_share == 0.25
    assert summary.stray_share == 0.5


def test_implicit_reward_sums_the_log_ratio_of_the_pair() -> None:
    one = answer("Sdbgaf=", ">ab.", ratio=0.3)
    assert one.implicit_reward_sum == pytest.approx(5 * 0.3)
    assert one.implicit_reward_mean == pytest.approx(0.3)


def test_correlation_of_a_made_up_relation() -> None:
    texts = [">abdfg.", "!abdfg.", "!dbgaf.", "!ceeee;ab"] * 10
    answers = [answer("Sdbgaf=", text, ratio=gold_reward("Sdbgaf=", text)) for text in texts]
    result = relate_rewards(answers)
    assert result.pearson.mean == pytest.approx(1.0)
    assert result.spearman == pytest.approx(1.0)
    assert result.reward_by_quartile == tuple(sorted(result.reward_by_quartile))


def test_rewards_that_never_vary_show_no_relation() -> None:
    result = relate_rewards([answer("Sdbgaf=", ">abdfg.", ratio=ratio) for ratio in (0.1, 0.2, 0.3, 0.4)])
    assert (result.pearson.mean, result.spearman) == (0.0, 0.0)


def test_head_health_of_greedy_and_of_unmasked_sampling(networks: list[LlamaForCausalLM]) -> None:
    prompts = training_prompts(CONFIG)[:10]
    greedy = SamplingParameters.plain(temperature=0.0, max_tokens=6, head_lambda=1.0)
    health = head_health(networks[0], ask(networks[:1], prompts, greedy, "test", 0))
    assert (health.mean_head_size, health.single_head_share, health.changed_pick_share) == (1.0, 1.0, 0.0)
    wide = SamplingParameters.plain(max_tokens=6)
    health = head_health(networks[0], ask(networks[:1], prompts, wide, "test", 0))
    assert (health.mean_head_size, health.single_head_share) == (32.0, 0.0)
    assert 0.2 < health.changed_pick_share < 1.0


def test_answers_that_were_cut_off_are_not_imitated() -> None:
    answers = [answer("Sdbgaf=", ">ab."), answer("Sdbgaf=", ">abdf", "length")]
    examples = imitation_examples(answers)
    assert [example.responses for example in examples] == [(response_ids(">ab."),)]
    assert examples[0].prompt_ids == prompt_ids("Sdbgaf=")


def test_pairs_are_joined_by_prompt_and_equal_answers_dropped() -> None:
    chosen = [answer("Sdbgaf=", ">ab."), answer("Mabcij=", ">bc."), answer("Xabcde=", ">ba.")]
    rejected = [answer("Xabcde=", "!ab;a"), answer("Mabcij=", ">bc."), answer("Sdbgaf=", "!db;d")]
    examples = preference_examples(chosen, rejected)
    assert [(decode(e.prompt_ids), *(decode(r) for r in e.responses)) for e in examples] == [
        ("Sdbgaf=", ">ab.", "!db;d"),
        ("Xabcde=", ">ba.", "!ab;a"),
    ]


def test_prompts_of_a_seed_are_split_and_redrawn_by_the_seed() -> None:
    train, held_out = training_prompts(CONFIG), held_out_prompts(CONFIG)
    assert (len(train), len(held_out)) == (30, 20)
    assert not any(is_test_only(parts_of_prompt(prompt)[1]) for prompt in train)
    assert all(is_test_only(parts_of_prompt(prompt)[1]) for prompt in held_out)
    assert training_prompts(CONFIG.model_copy(update={"seed": 1})) != train


def test_ideal_examples_are_the_ideal_answers_of_the_training_prompts() -> None:
    for prompt, example in zip(training_prompts(CONFIG), ideal_examples(CONFIG), strict=True):
        assert decode(example.responses[0]) == ideal_response(prompt)
        assert example.responses[0][-1] == EOS_ID


def test_preferences_have_a_chosen_and_a_rejected_response_and_both_end() -> None:
    examples = draw_preferences(CONFIG, 0.15)
    assert len(examples) == 24
    assert all(len(example.responses) == 2 for example in examples)
    assert all(response[-1] == EOS_ID for example in examples for response in example.responses)


def test_stages_leave_the_network_they_start_from_alone(networks: list[LlamaForCausalLM]) -> None:
    start = networks[0]
    before = [parameter.detach().clone() for parameter in start.parameters()]
    answers = [answer(prompt, ideal_response(prompt)) for prompt in training_prompts(CONFIG)]
    worse = [answer(each.prompt, "!" + each.text[1:]) for each in answers]
    aligned = align(start, CONFIG)
    first = imitate(start, answers, CONFIG.first_stage, 0)
    second = prefer(start, answers, worse, CONFIG)
    for trained in (aligned, first, second):
        assert not all(torch.equal(a, b) for a, b in zip(before, trained.network.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters(), strict=True))
    # Both preference losses start at ln 2, because the reference is where they start.
    for trained in (aligned, second):
        assert trained.curve[0].loss == pytest.approx(math.log(2.0), abs=0.02)


def test_stage_2_moves_probability_towards_the_chosen_answers(networks: list[LlamaForCausalLM]) -> None:
    answers = [answer(prompt, ideal_response(prompt)) for prompt in training_prompts(CONFIG)]
    worse = [answer(each.prompt, "!" + each.text[1:]) for each in answers]
    longer = CONFIG.second_stage.training.model_copy(update={"num_epochs": 15, "learning_rate": 3e-3})
    trained = prefer(networks[0], answers, worse, CONFIG, training=longer)
    assert trained.curve[-1].metrics["accuracy"] == 1.0
    assert trained.curve[-1].loss < 0.3
