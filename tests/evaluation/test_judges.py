"""Each kind of judge against an independent computation, and everything that can be wrong with one."""

import json
import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cong.config import EngineConfig, ModelsConfig
from cong.config.evaluation import (
    CandidateConfig,
    EvaluationConfig,
    GapSettings,
    ImplicitJudge,
    ProgramJudge,
    RewardModelJudge,
)
from cong.config.models import NetworkConfig
from cong.errors import ArtefactMissing, ConfigError, EvaluationError, UnsafeArtefact, UnsupportedModel
from cong.evaluation import (
    Answer,
    AnswerSet,
    GoldProgram,
    ImplicitReward,
    Judge,
    Measurement,
    Reading,
    RewardModelScore,
    answer_set,
    judge_answers,
    summarise,
)
from cong.evaluation.judges.program import load_function
from cong.evaluation.results import Estimated
from cong.lab.networks import EOS_ID, prompt_ids, response_ids
from cong.lab.networks import load_network as load_lab_network
from cong.lab.sampler import reference_score
from cong.models import load_tokenizer
from cong.schemas import Prompt
from tests.models.conftest import train_tokenizer

from .conftest import LabPair

ENGINE = EngineConfig(kv_memory_bytes=20_000_000, max_running=3)


def answers_to(*pairs: tuple[str, str]) -> AnswerSet:
    prompts = [Prompt(text=prompt, prompt_id=prompt[:40]) for prompt, _ in pairs]
    return answer_set("x", "given", prompts, [Answer(p, text) for p, (_, text) in zip(prompts, pairs, strict=True)])


def program(name: str, **more: Any) -> GoldProgram:
    return GoldProgram("gold", ProgramJudge(kind="program", function=f"tests.evaluation.rewards:{name}", **more))


def rewards_of(judge: Judge, answers: AnswerSet, folder: Path | None = None) -> list[float]:
    judged = judge_answers(judge, [answers], folder)
    return [judged.reward(answer) for answer in answers.answers]


# Programs.


def test_a_program_judges_by_its_name() -> None:
    assert rewards_of(program("share_of_vowels"), answers_to(("p", "ab"), ("q", ""))) == [0.5, 0.0]
    gold = GoldProgram("gold", ProgramJudge(kind="program", function="cong.lab.world:gold_reward"))
    assert rewards_of(gold, answers_to(("Sdbgaf=", ">abdfg."))) == [1.0]


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("os:system", "is part of Python itself"),
        ("builtins:eval", "is part of Python itself"),
        ("subprocess:run", "is part of Python itself"),
        ("nosuch.module:f", "nosuch.module cannot be imported"),
        ("cong.lab.world:gold_rewards", "has no gold_rewards; nearest is 'gold_reward'"),
        ("tests.evaluation.rewards:join", "is no function that tests.evaluation.rewards defines"),
        ("cong.lab.world:Judgement", "is no function that cong.lab.world defines"),
        ("tests.evaluation.rewards:one_argument", r"cannot be called with \(prompt, answer\)"),
    ],
)
def test_a_wrong_program_is_refused_by_name(path: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_function(path)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nan_for_b", "judge 'gold' says nan of prompt 'q', sample 0"),
        ("too_large", "judge 'gold' says 2.0 of prompt 'p', sample 0, outside of 0 to 1"),
        ("failing", "judge 'gold' .* fails on prompt 'p', sample 0: KeyError: 'a'"),
        ("says_text", "fails on prompt 'p', sample 0: ValueError"),
    ],
)
def test_a_program_that_goes_wrong_names_the_prompt(name: str, complaint: str) -> None:
    with pytest.raises(EvaluationError, match=complaint):
        rewards_of(program(name), answers_to(("p", "a"), ("q", "b")))


def test_a_prompt_of_token_ids_is_nothing_for_a_program() -> None:
    prompt = Prompt(token_ids=(1, 2), prompt_id="ids")
    with pytest.raises(EvaluationError, match="prompt 'ids', sample 0: the prompt has no text"):
        rewards_of(program("share_of_vowels"), answer_set("x", "given", [prompt], [Answer(prompt, "a")]))


def test_rewards_that_are_all_alike_are_bounded_by_what_the_judge_may_say() -> None:
    prompts = [Prompt(text=str(number), prompt_id=str(number)) for number in range(20)]
    sets = [answer_set(text, "given", prompts, [Answer(one, text) for one in prompts]) for text in ("a", "b")]
    result = summarise(sets, [judge_answers(program("share_of_vowels"), sets)], EvaluationConfig())
    right, wrong = (one.rewards["gold"].reward for one in result.sets)
    assert (right.low, right.high, wrong.low, wrong.high) == pytest.approx((0.8389, 1.0, 0.0, 0.1611), abs=1e-4)
    difference = result.comparisons[0].difference
    assert (difference.low, difference.high) == pytest.approx((-1.0, -1.0 + 2 * 0.1611), abs=1e-4)
    endless = summarise(sets, [judge_answers(Counting(), sets)], EvaluationConfig())
    assert endless.comparisons[0].difference == Estimated(mean=0.0)


def test_no_interval_of_rewards_with_ends_goes_past_them() -> None:
    """19 of 20 right by a program that says 0 or 1: Wilson's interval, where the normal one would end at 1.048."""
    prompts = [Prompt(text=str(number)) for number in range(20)]

    def saying(name: str, *texts: str) -> AnswerSet:
        return answer_set(name, "given", prompts, [Answer(*each) for each in zip(prompts, texts, strict=True)])

    sets = [saying("floor", *["b"] * 20), saying("good", *["a"] * 19, "b"), saying("best", "b", *["a"] * 19)]
    candidates = {one.candidate: CandidateConfig(answers=Path("given.jsonl")) for one in sets}
    config = EvaluationConfig(candidates=candidates, gap=GapSettings(floor="floor", ceiling="best"))
    result = summarise(sets, [judge_answers(program("share_of_vowels"), sets)], config)
    judge = result.judges[0]
    assert (judge.least, judge.most, judge.reward_ends) == (0.0, 1.0, (0.0, 1.0))
    good = result.sets[1].rewards["gold"].reward
    assert (good.low, good.high) == pytest.approx((0.7639, 0.9911), abs=1e-4)
    differences = [one.difference for one in result.comparisons] + [one.gained for one in result.gaps]
    for one in [*differences, result.gaps[0].gap]:
        assert one.mean == 0.95
        assert one.low is not None
        assert one.high is not None
        assert 0.7 < one.low < 0.95 < one.high < 1.0


# What is kept.


class Counting:
    """A judge that counts what it is asked, and fails after so many."""

    name = about = fingerprint = "counting"
    sums_tokens = False
    reward_ends = (0.0, math.inf)

    def __init__(self, fails_after: int = 1000) -> None:
        self.asked: list[str] = []
        self._fails_after = fails_after

    def measure(self, answers: Sequence[Answer]) -> Iterator[Reading]:
        for answer in answers:
            if len(self.asked) == self._fails_after:
                raise EvaluationError("killed")
            self.asked.append(answer.text)
            yield Reading(answer, float(len(answer.text)))

    def is_enough(self, answer: Answer, measurement: Measurement) -> bool:
        return True

    def reward(self, measurement: Measurement) -> float:
        return measurement.value


def test_what_has_been_judged_is_not_judged_again(tmp_path: Path) -> None:
    answers = answers_to(("p", "a"), ("q", "bb"), ("r", "ccc"))
    first = Counting(fails_after=2)
    with pytest.raises(EvaluationError, match="killed"):
        judge_answers(first, [answers], tmp_path)
    (kept,) = tmp_path.glob("*.jsonl")
    whole = kept.read_bytes()
    assert whole.count(b"\n") == 2
    kept.write_bytes(whole[:-5])  # the last line is torn
    second = Counting()
    assert rewards_of(second, answers, tmp_path) == [1.0, 2.0, 3.0]
    assert (first.asked, second.asked) == (["a", "bb"], ["bb", "ccc"])
    third = Counting()
    rewards_of(third, answers, tmp_path)
    assert third.asked == []
    kept.write_text('{"something": "else"}\n')
    with pytest.raises(EvaluationError, match="holds something else"):
        judge_answers(third, [answers], tmp_path)


def test_equal_answers_are_judged_once() -> None:
    judge, answers = Counting(), answers_to(("p", "a"))
    judge_answers(judge, [answers, answers])
    assert judge.asked == ["a"]


def test_an_answer_without_a_judgement_is_named() -> None:
    class Silent(Counting):
        def measure(self, answers: Sequence[Answer]) -> Iterator[Reading]:
            yield from list(super().measure(answers))[:1]

    with pytest.raises(EvaluationError, match="says nothing of prompt 'q', sample 0"):
        judge_answers(Silent(), [answers_to(("p", "a"), ("q", "b"))])


# The weak pair.


def implicit(pair: LabPair, form: str = "mean", **more: Any) -> ImplicitReward:
    models = ModelsConfig(
        aligned=NetworkConfig(source=str(pair.aligned)), base=NetworkConfig(source=str(pair.base)), dtype="float32"
    )
    settings = ImplicitJudge.model_validate({"kind": "implicit", "form": form})
    return ImplicitReward("implicit", settings, models.model_copy(update=more), ENGINE, frozenset({"Sdbgaf="}))


SAID = (("Sdbgaf=", ">abdfg."), ("Mabcde=", "!abcde;bc"), ("Xabcde=", ""), ("Oabcde=", ">"))


def test_implicit_reward_is_the_pair_s_log_ratio(lab_pair: LabPair) -> None:
    answers = answers_to(*SAID)
    judge = implicit(lab_pair)
    judged = judge_answers(judge, [answers])
    pair = [load_lab_network(lab_pair.aligned), load_lab_network(lab_pair.base)]
    for (prompt, text), answer in zip(SAID, answers.answers, strict=True):
        aligned, base = reference_score(pair, prompt_ids(prompt), response_ids(text))
        total = math.fsum(aligned) - math.fsum(base)
        measured = judged.measurements[answer.key]
        assert measured.value == pytest.approx(total, abs=1e-4)
        assert measured.num_tokens == len(text) + 1
        assert judged.reward(answer) == pytest.approx(total / (len(text) + 1), abs=1e-4)
        assert bool(measured.tokens) == (prompt == "Sdbgaf=")
    shown = judged.measurements[answers.answers[0].key].tokens
    assert "".join(token.text for token in shown) == ">abdfg.<eos>"
    assert math.fsum(token.aligned - token.base for token in shown) == pytest.approx(
        judged.measurements[answers.answers[0].key].value
    )


def test_the_sum_is_the_mean_times_the_tokens_and_both_share_what_is_kept(lab_pair: LabPair, tmp_path: Path) -> None:
    answers = answers_to(*SAID)
    means = rewards_of(implicit(lab_pair), answers, tmp_path)
    sums = rewards_of(implicit(lab_pair, "sum"), answers, tmp_path)
    assert sums == [pytest.approx(mean * (len(text) + 1)) for mean, (_, text) in zip(means, SAID, strict=True)]
    assert len(list(tmp_path.iterdir())) == 1


def test_swapping_the_pair_turns_the_sign(lab_pair: LabPair) -> None:
    answers = answers_to(*SAID)
    swapped = LabPair(lab_pair.aligned, lab_pair.base, lab_pair.prompts, lab_pair.ideal)
    there, back = rewards_of(implicit(lab_pair), answers), rewards_of(implicit(swapped), answers)
    assert back == [pytest.approx(-reward, abs=1e-5) for reward in there]
    assert max(map(abs, there)) > 0.05
    assert implicit(lab_pair).fingerprint != implicit(swapped).fingerprint


def test_a_network_against_itself_prefers_nothing(lab_pair: LabPair) -> None:
    same = LabPair(lab_pair.base, lab_pair.base, lab_pair.prompts, lab_pair.ideal)
    assert rewards_of(implicit(same), answers_to(*SAID)) == [pytest.approx(0.0, abs=1e-6)] * len(SAID)


def test_drawn_tokens_are_scored_as_drawn_and_a_truncated_answer_gets_no_end(lab_pair: LabPair) -> None:
    prompt = Prompt(text="Sdbgaf=")
    fingerprint = load_tokenizer(str(lab_pair.base)).fingerprint
    drawn = (*response_ids(">ab")[:-1], EOS_ID)
    answers = [
        Answer(prompt, ">ab", 0, drawn, fingerprint),
        Answer(prompt, ">ab", 1, drawn[:2], fingerprint),
        Answer(prompt, ">ab", 2, drawn[:2], "another tokenizer"),
        Answer(prompt, ">ab", 3, is_truncated=True),
    ]
    one = answer_set("x", "T=1", [prompt], answers)
    judged = judge_answers(implicit(lab_pair), [one])
    assert [judged.measurements[answer.key].num_tokens for answer in answers] == [4, 2, 4, 3]
    assert judged.reward(answers[0]) == pytest.approx(judged.reward(answers[2]), abs=1e-5)


def test_an_empty_answer_that_was_cut_off_has_no_evidence_either_way(lab_pair: LabPair) -> None:
    prompt = Prompt(text="Sdbgaf=")
    answer = Answer(prompt, "", is_truncated=True)
    assert rewards_of(implicit(lab_pair), answer_set("x", "given", [prompt], [answer])) == [0.0]


def test_an_answer_that_the_pair_cannot_read_is_named(lab_pair: LabPair) -> None:
    with pytest.raises(EvaluationError, match="prompt 'Sdbgaf=', sample 0 cannot be scored"):
        rewards_of(implicit(lab_pair), answers_to(("Sdbgaf=", "a" * 500)))


def test_a_judge_without_a_pair_says_what_to_set(lab_pair: LabPair) -> None:
    with pytest.raises(ConfigError, match=r"set evaluation\.judges\.implicit\.base\.source or models\.base\.source"):
        implicit(lab_pair, base=NetworkConfig())


# Reward models.


def save_reward_model(folder: Path, *, num_labels: int = 1, **config: Any) -> Path:
    """A random Llama with outputs per sequence, and a tokenizer with a chat template."""
    torch.manual_seed(3)
    configure: Any = transformers.LlamaConfig
    settings = configure(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=48,
        num_labels=num_labels,
        bos_token_id=0,
        **{"pad_token_id": 5, "eos_token_id": 4, **config},
    )
    build: Any = transformers.LlamaForSequenceClassification
    model = build(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)
    return train_tokenizer(folder)


def reward_model(folder: Path, **more: Any) -> RewardModelScore:
    settings = RewardModelJudge(kind="reward_model", network=NetworkConfig(source=str(folder)), **more)
    return RewardModelScore("rm", settings, ModelsConfig(dtype="float32"))


TALK = (("the cat", "sat"), ("the dog ran", "to the mat, and the user"), ("the", ""))


def by_transformers(folder: Path, texts: Sequence[str], add_special_tokens: bool) -> list[float]:
    """Rewards of whole texts, one at a time."""
    auto: Any = transformers.AutoModelForSequenceClassification
    model, tokenizer = auto.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    rewards = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=add_special_tokens, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            rewards.append(float(model(input_ids=ids).logits[0, 0]))
    return rewards


def chat(prompt: str, answer: str) -> str:
    """What the tokenizer's template makes of it, written out; its clock stands still."""
    return (
        f"<|begin|>Today: 26 Jul 2024\n<|head|>user<|/head|>{prompt}<|turn|><|head|>assistant<|/head|>{answer}<|turn|>"
    )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_reward_model_agrees_with_transformers_whatever_the_batch(tmp_path: Path, batch_size: int) -> None:
    folder = save_reward_model(tmp_path / "rm")
    found = rewards_of(reward_model(folder, batch_size=batch_size), answers_to(*TALK))
    assert found == pytest.approx(by_transformers(folder, [chat(*each) for each in TALK], False), abs=1e-5)
    assert max(found) - min(found) > 0.01


def test_plain_rendering_joins_prompt_answer_and_end(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "rm")
    found = rewards_of(reward_model(folder, rendering="plain"), answers_to(*TALK))
    texts = [f"<|begin|>{prompt}{answer}<|turn|>" for prompt, answer in TALK]
    assert found == pytest.approx(by_transformers(folder, texts, False), abs=1e-5)


def test_without_a_padding_token_of_its_own_a_reward_model_reads_one_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_reward_model(tmp_path / "rm", pad_token_id=None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": config["eos_token"]}))
    with caplog.at_level(logging.WARNING):
        found = rewards_of(reward_model(folder, batch_size=3), answers_to(*TALK))
    assert found == pytest.approx(by_transformers(folder, [chat(*each) for each in TALK], False), abs=1e-5)
    assert "one at a time" in caplog.text


def test_one_text_from_two_candidates_has_one_reward(tmp_path: Path) -> None:
    """In bfloat16 a sequence's reward depends on its batch, so one that is read twice may beat itself."""
    rng, words = random.Random(0), ("the", "cat", "sat", "dog", "ran", "to", "mat", "and", "user")

    def text(most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, most)))

    prompts = [Prompt(text=text(8), prompt_id=str(number)) for number in range(40)]
    given = [Answer(prompt, text(10)) for prompt in prompts]
    drawn = [replace(answer, token_ids=(1, place), tokenizer_fingerprint="t") for place, answer in enumerate(given)]
    sets = [answer_set("file", "given", prompts, given), answer_set("network", "T=1", prompts, drawn)]
    settings = RewardModelJudge(
        kind="reward_model", network=NetworkConfig(source=str(save_reward_model(tmp_path / "rm")))
    )
    judged = judge_answers(RewardModelScore("rm", settings, ModelsConfig(dtype="bfloat16")), sets)
    assert judged.rewards(sets[0]) == judged.rewards(sets[1])
    assert len(judged.measurements) == 80


def test_what_a_reward_model_cannot_read_is_cut_at_the_front_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_reward_model(tmp_path / "rm")
    answers = answers_to(("the cat " * 40, "sat"), ("the", "dog"))
    with caplog.at_level(logging.WARNING):
        judged = judge_answers(reward_model(folder), [answers])
    long, short = (judged.measurements[answer.key] for answer in answers.answers)
    assert (long.num_tokens, short.num_cut) == (48, 0)
    assert long.num_cut > 0
    assert "1 of 2 sequences are longer than 48 tokens" in caplog.text


def test_what_is_no_reward_model_is_refused_by_name(tmp_path: Path, lab_pair: LabPair) -> None:
    with pytest.raises(UnsupportedModel, match="it has 2 outputs per sequence; a reward model has 1"):
        reward_model(save_reward_model(tmp_path / "two", num_labels=2))
    with pytest.raises(UnsupportedModel, match="its weights are those of LlamaForCausalLM"):
        reward_model(lab_pair.base)
    with pytest.raises(ArtefactMissing):
        reward_model(tmp_path / "nosuch")
    bert: Any = transformers.BertConfig
    encoder = bert(num_labels=1, architectures=["BertForSequenceClassification"])
    encoder.save_pretrained(tmp_path / "bert")
    with pytest.raises(UnsupportedModel, match="bert is an encoder"):
        reward_model(tmp_path / "bert")
    pickled = save_reward_model(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UnsafeArtefact, match="only as pickle"):
        reward_model(pickled)


def test_a_reward_model_refuses_token_ids_by_name(tmp_path: Path) -> None:
    prompt = Prompt(token_ids=(7, 8), prompt_id="ids")
    with pytest.raises(EvaluationError, match="prompt 'ids', sample 0: the prompt is given as token ids"):
        rewards_of(
            reward_model(save_reward_model(tmp_path / "rm")), answer_set("x", "given", [prompt], [Answer(prompt, "a")])
        )
