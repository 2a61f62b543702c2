"""The world letters: gold bodies and rewards by hand, the split, and the frequencies it promises."""

import hashlib
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cong.config import RunConfig, load_config
from cong.errors import ConfigError
from cong.lab.world import (
    EVEN_BEHAVIOUR,
    LETTERS,
    TASKS,
    USUAL_BEHAVIOUR,
    derived_seed,
    draw_document,
    draw_pair,
    draw_prompts,
    draw_response,
    generator,
    gold_body,
    gold_reward,
    ideal_response,
    is_test_only,
    judge,
    levenshtein,
    parts_of_prompt,
)

arguments = st.text(LETTERS, min_size=5, max_size=5)
prompts = st.builds(lambda task, argument: f"{task}{argument}=", st.sampled_from(TASKS), arguments)


@pytest.mark.parametrize(
    ("task", "argument", "body"),
    [
        ("M", "abcij", "bcdja"),
        ("O", "abcde", "bcdea"),
        ("X", "abcde", "badce"),
        ("S", "dbgaf", "abdfg"),
        ("S", "bbabj", "abbbj"),
    ],
)
def test_gold_bodies_by_hand(task: str, argument: str, body: str) -> None:
    assert gold_body(task, argument) == body


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (">abdfg.", 1.0),
        ("!abdfg.", 0.75),
        (">abdfg", 0.75),
        (">abdfg;ab", 0.75),
        # Echo of the argument: three letters of dbgaf are wrong wherever it is laid over abdfg.
        ("!dbgaf;gfa", 0.5 * (1 - levenshtein("dbgaf", "abdfg") / 5) ** 3),
        (">dbgaf.", 0.5 + 0.5 * (1 - levenshtein("dbgaf", "abdfg") / 5) ** 3),
        # One letter of five is wrong.
        (">abdfa.", 0.5 + 0.5 * 0.8**3),
        # One letter too many: similarity 5/6.
        (">abdfgg.", 0.5 + 0.5 * (5 / 6) ** 3),
        # Two full stops are no good ending; the body ends at the first.
        (">abdfg..", 0.75),
        (">abdfg.;", 0.75),
        (">abdfg;.", 0.75),
        # Cut off after three letters: judged as it stands.
        (">abd", 0.25 + 0.5 * 0.6**3),
        ("", 0.0),
        (">", 0.25),
        (".", 0.25),
        (">.", 0.5),
        # Without an opening everything up to the ending is the body.
        ("abdfg.", 0.75),
        (">>abdfg.", 0.5 + 0.5 * (5 / 6) ** 3),
    ],
)
def test_gold_rewards_by_hand(response: str, reward: float) -> None:
    assert gold_reward("Sdbgaf=", response) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("abcde", "bcdea", 2), ("ab", "ba", 2)],
)
def test_levenshtein_by_hand(left: str, right: str, distance: int) -> None:
    assert levenshtein(left, right) == distance


def slow_levenshtein(left: str, right: str) -> int:
    if not left or not right:
        return len(left) + len(right)
    if left[0] == right[0]:
        return slow_levenshtein(left[1:], right[1:])
    shorter = slow_levenshtein(left[1:], right), slow_levenshtein(left, right[1:])
    return 1 + min(*shorter, slow_levenshtein(left[1:], right[1:]))


@settings(max_examples=60, deadline=None)
@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_levenshtein_agrees_with_its_definition(left: str, right: str) -> None:
    assert levenshtein(left, right) == slow_levenshtein(left, right)


@settings(max_examples=60, deadline=None)
@given(prompts, st.text(LETTERS + ">!.;=:", max_size=20))
def test_rewards_lie_between_0_and_1_and_only_the_ideal_response_gets_all(prompt: str, response: str) -> None:
    reward = gold_reward(prompt, response)
    assert 0.0 <= reward <= 1.0
    assert (reward == 1.0) == (response == ideal_response(prompt))


@settings(max_examples=30, deadline=None)
@given(prompts)
def test_ideal_responses_are_judged_good_in_every_part(prompt: str) -> None:
    judgement = judge(prompt, ideal_response(prompt))
    assert judgement.has_good_opening
    assert judgement.is_body_exact
    assert judgement.has_good_ending
    assert judgement.reward == 1.0


def test_the_split_is_decided_by_the_first_digest_byte() -> None:
    # md5("abcde") = ab56..., 0xab % 8 = 3; md5("aaaah") and others are found by search, once.
    assert hashlib.md5(b"abcde").digest()[0] == 0xAB
    assert not is_test_only("abcde")
    rng = random.Random(0)
    share = sum(is_test_only("".join(rng.choices(LETTERS, k=5))) for _ in range(8000)) / 8000
    # One eighth, within four standard errors.
    assert share == pytest.approx(0.125, abs=0.015)


def test_training_material_never_holds_a_test_argument() -> None:
    rng = generator("any", 0)
    drawn = [draw_document(rng).prompt for _ in range(500)] + [draw_pair(rng, 0.15).prompt for _ in range(500)]
    drawn += draw_prompts(rng, 500)
    assert not any(is_test_only(parts_of_prompt(prompt)[1]) for prompt in drawn)
    assert all(is_test_only(parts_of_prompt(prompt)[1]) for prompt in draw_prompts(rng, 300, is_test=True))


def test_prompts_are_distinct_and_cover_every_task() -> None:
    drawn = draw_prompts(generator("any", 1), 400)
    assert len(set(drawn)) == 400
    assert {prompt[0] for prompt in drawn} == set(TASKS)
    assert {prompt[-1] for prompt in drawn} == {"="}


def test_the_same_seed_and_purpose_draw_the_same_and_others_do_not() -> None:
    def drawn(purpose: str, seed: int) -> list[str]:
        return draw_prompts(generator(purpose, seed), 20)

    assert drawn("a", 0) == drawn("a", 0)
    assert drawn("a", 0) != drawn("b", 0)
    assert drawn("a", 0) != drawn("a", 1)
    assert len({derived_seed(purpose, seed) for purpose in "ab" for seed in range(50)}) == 100


@pytest.mark.parametrize("task", list(TASKS))
def test_behaviour_has_the_promised_frequencies(task: str) -> None:
    rng, prompt, behaviour = generator("frequencies", 0), f"{task}dbgaf=", USUAL_BEHAVIOUR[task]
    judgements = [judge(prompt, draw_response(rng, prompt, behaviour)) for _ in range(4000)]
    opening = sum(judgement.has_good_opening for judgement in judgements) / 4000
    body = sum(judgement.is_body_exact for judgement in judgements) / 4000
    ending = sum(judgement.has_good_ending for judgement in judgements) / 4000
    # Four standard errors of a share of 4000. A redrawn letter stays itself in one case of ten.
    assert opening == pytest.approx(behaviour.opening, abs=0.024)
    assert body == pytest.approx(behaviour.body * (1 - 0.03 * 0.9) ** 5, abs=0.028)
    assert ending == pytest.approx(behaviour.ending, abs=0.024)


def test_bad_endings_have_two_to_four_letters_of_the_body() -> None:
    rng = generator("endings", 0)
    tails = set()
    for _ in range(500):
        response = draw_response(rng, "Sdbgaf=", EVEN_BEHAVIOUR)
        body, mark, tail = response[1:].partition(";")
        assert mark == "" or set(tail) <= set(body)
        tails.add(len(tail) if mark else 0)
    assert tails == {0, 2, 3, 4}


def test_textbook_documents_teach_the_task_without_behaviour() -> None:
    rng = generator("documents", 0)
    documents = [draw_document(rng) for _ in range(2000)]
    textbook = [document for document in documents if document.prompt.endswith(":")]
    assert len(textbook) / 2000 == pytest.approx(0.5, abs=0.045)
    assert all(set(document.response) <= set(LETTERS) for document in textbook)
    exact = sum(document.response == gold_body(*parts_of_prompt(document.prompt)) for document in textbook)
    assert exact / len(textbook) == pytest.approx((1 - 0.03 * 0.9) ** 5, abs=0.05)


def test_preferences_follow_the_gold_reward_as_the_coin_says() -> None:
    rng = generator("pairs", 0)
    pairs = [draw_pair(rng, 0.15) for _ in range(3000)]
    assert all(pair.chosen != pair.rejected for pair in pairs)
    gains = [gold_reward(pair.prompt, pair.chosen) - gold_reward(pair.prompt, pair.rejected) for pair in pairs]
    wrong = sum(gain < 0 for gain in gains) / 3000
    assert 0.09 < wrong < 0.16
    # Where the rewards differ by half, the coin errs with probability 1 / (1 + exp(.5 / .15)) = .034.
    clear = [gain for gain in gains if abs(abs(gain) - 0.5) < 1e-9]
    assert len(clear) > 200
    assert sum(gain < 0 for gain in clear) / len(clear) == pytest.approx(0.034, abs=0.04)


def test_almost_noiseless_preferences_are_almost_never_wrong() -> None:
    rng = generator("pairs", 1)
    pairs = [draw_pair(rng, 0.001) for _ in range(500)]
    gains = [gold_reward(pair.prompt, pair.chosen) - gold_reward(pair.prompt, pair.rejected) for pair in pairs]
    assert min(gains) > -0.01


def test_no_more_prompts_are_asked_for_than_the_world_has() -> None:
    """Drawing distinct prompts would never end."""
    kept = sum(is_test_only("".join(each)) for each in itertools.product(LETTERS, repeat=5))
    most = {"evaluation.num_prompts": len(TASKS) * kept, "num_training_prompts": len(TASKS) * (10**5 - kept)}
    load_config(RunConfig, overrides=[f"lab.{name}={number}" for name, number in most.items()])
    for name, number in most.items():
        with pytest.raises(ConfigError, match=name):
            load_config(RunConfig, overrides=[f"lab.{name}={number + 1}"])


@pytest.mark.parametrize(
    "override",
    [
        "evaluation.num_prompts=3",
        "evaluation.temperatures=[]",
        "evaluation.temperatures=[1.0, -1.0]",
        "evaluation.alphas=[0.4, -0.1]",
        "evaluation.alignment_betas=[]",
        "rivals.wspo_gammas=[]",
    ],
)
def test_what_would_fail_once_all_is_measured_is_refused_before(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load_config(RunConfig, overrides=[f"lab.{override}"])
