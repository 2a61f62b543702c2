"""The reference sampler against an enumeration in plain Python, against transformers, and its own laws."""

import math
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from cong.lab.networks import EOS_ID, prompt_ids
from cong.lab.sampler import ReferenceSample, reference_sample, reference_score
from cong.schemas import SamplingParameters

PROMPT = prompt_ids("Sdbgaf=")


class TableNetwork(nn.Module):
    """A causal language model whose next-token logits are looked up by the last token and the sum of all."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)  # [last token, sum of tokens modulo 3, token]

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids, input_ids.cumsum(-1) % 3])


def random_table(seed: int, vocab_size: int = 5) -> TableNetwork:
    generator = torch.Generator().manual_seed(seed)
    return TableNetwork(1.5 * torch.randn(vocab_size, 3, vocab_size, generator=generator))


def fixed_logits(logits: Sequence[float]) -> TableNetwork:
    return TableNetwork(torch.tensor(logits).expand(len(logits), 3, len(logits)).clone())


def sample_one(
    networks: Sequence[nn.Module],
    prompt: Sequence[int],
    parameters: SamplingParameters,
    sample_index: int = 0,
    eos: Sequence[int] = (),
) -> ReferenceSample:
    return reference_sample(networks, [prompt], [parameters], [sample_index], eos)[0]


def next_distribution(
    networks: Sequence[TableNetwork], prefix: Sequence[int], generated: Sequence[int], rule: SamplingParameters
) -> list[float]:
    """The rule once more, in plain Python numbers, for rules without top-k, floor, exempt tokens and tempering."""
    logprobs = []
    for network in networks:
        logits = network.table[prefix[-1], sum(prefix) % 3].tolist()
        total = math.log(sum(math.exp(value) for value in logits))
        logprobs.append([value - total for value in logits])
    best = max(logprobs[0])
    scores = {
        token: sum(weight * logprob[token] for weight, logprob in zip(rule.weights, logprobs, strict=True))
        - (math.log(rule.repetition_penalty) if token in generated else 0.0)
        for token in range(len(logprobs[0]))
        if math.exp(logprobs[0][token] - best) >= rule.head_lambda
    }
    masses = {token: math.exp(score / rule.temperature) for token, score in scores.items()}
    kept: dict[int, float] = {}
    for token in sorted(masses, key=lambda token: -masses[token]):
        if sum(kept.values()) < rule.top_p * sum(masses.values()):
            kept[token] = masses[token]
    return [kept.get(token, 0.0) / sum(kept.values()) for token in range(len(logprobs[0]))]


def enumerate_completions(
    networks: Sequence[TableNetwork], prompt: Sequence[int], rule: SamplingParameters, eos: int
) -> dict[tuple[int, ...], float]:
    """The exact probability of every completion."""
    finished: dict[tuple[int, ...], float] = {}
    growing: dict[tuple[int, ...], float] = {(): 1.0}
    while growing:
        longer: dict[tuple[int, ...], float] = {}
        for generated, mass in growing.items():
            for token, share in enumerate(next_distribution(networks, [*prompt, *generated], generated, rule)):
                completion = (*generated, token)
                is_over = token == eos or len(completion) == rule.max_tokens
                if share > 0.0:
                    (finished if is_over else longer)[completion] = mass * share
        growing = longer
    return finished


RULES = [
    SamplingParameters(weights=(1.0,), head_lambda=0.0, max_tokens=2),
    SamplingParameters(weights=(1.0,), head_lambda=0.2, temperature=0.7, top_p=0.9, max_tokens=3),
    SamplingParameters(weights=(1.0, -0.6), head_lambda=0.1, max_tokens=3),
    SamplingParameters(weights=(1.0, -0.6), head_lambda=0.1, repetition_penalty=1.8, temperature=1.3, max_tokens=3),
    SamplingParameters(weights=(1.0, 0.5, -0.5), head_lambda=0.05, top_p=0.95, max_tokens=3),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"K={len(rule.weights)} penalty={rule.repetition_penalty}")
def test_samples_have_the_exact_distribution(rule: SamplingParameters) -> None:
    networks = [random_table(seed) for seed in range(len(rule.weights))]
    prompt, eos, num_samples = (1, 3), 4, 4000
    expected = enumerate_completions(networks, prompt, rule, eos)
    assert sum(expected.values()) == pytest.approx(1.0)
    samples = reference_sample(networks, [prompt] * num_samples, [rule] * num_samples, range(num_samples), [eos])
    counts = Counter(sample.token_ids for sample in samples)
    assert counts.keys() <= expected.keys()
    # Pearson's chi-square over completions expected at least 5 times, the others as one bin.
    common = {completion: mass for completion, mass in expected.items() if mass * num_samples >= 5.0}
    bins = [(counts[completion], mass * num_samples) for completion, mass in common.items()]
    rest = num_samples - sum(count for count, _ in bins), num_samples * (1.0 - sum(common.values()))
    bins += [rest] if rest[1] >= 5.0 else []
    statistic = sum((count - mean) ** 2 / mean for count, mean in bins)
    num_freedoms = len(bins) - 1
    assert num_freedoms >= 3
    # Wilson and Hilferty's cube root is nearly normal; 4.26 standard deviations: one false alarm in 100,000 seeds.
    spread = math.sqrt(2.0 / (9.0 * num_freedoms))
    assert ((statistic / num_freedoms) ** (1.0 / 3.0) - (1.0 - spread**2)) / spread < 4.26


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"K={len(rule.weights)} penalty={rule.repetition_penalty}")
def test_recorded_mixture_logprobs_are_those_of_the_enumeration(rule: SamplingParameters) -> None:
    networks = [random_table(seed) for seed in range(len(rule.weights))]
    expected = enumerate_completions(networks, (1, 3), rule, eos=4)
    for index in range(20):
        sample = sample_one(networks, (1, 3), rule, index, eos=[4])
        assert math.exp(sum(sample.mixture_logprobs)) == pytest.approx(expected[sample.token_ids], rel=1e-5)


@pytest.mark.parametrize("num_networks", [1, 2, 3])
def test_a_row_gets_the_same_tokens_alone_and_in_a_batch(num_networks: int, networks: list[LlamaForCausalLM]) -> None:
    weights = (1.0, -0.6, 0.3)[:num_networks]
    rules = [
        SamplingParameters(weights=weights, temperature=temperature, top_p=top_p, seed=seed, max_tokens=10)
        for seed, (temperature, top_p) in enumerate([(1.0, 1.0), (0.7, 0.9), (0.0, 1.0), (1.5, 1.0), (1.0, 0.8)])
    ]
    prompts = [prompt_ids(f"{task}dbgaf=") for task in "MOXSM"]
    together = reference_sample(networks[:num_networks], prompts, rules, range(5), [EOS_ID])
    for prompt, rule, index, batched in zip(prompts, rules, range(5), together, strict=True):
        alone = sample_one(networks[:num_networks], prompt, rule, index, [EOS_ID])
        assert alone.token_ids == batched.token_ids
        assert alone.head_sizes == batched.head_sizes
        assert alone.finish_reason == batched.finish_reason
        torch.testing.assert_close(torch.tensor(alone.logprobs), torch.tensor(batched.logprobs), rtol=0, atol=1e-5)


def test_greedy_from_one_network_is_what_transformers_generates(networks: list[LlamaForCausalLM]) -> None:
    rule = SamplingParameters.plain(temperature=0.0, max_tokens=20)
    for network in networks:
        generate: Any = network.generate  # type: ignore[misc]
        expected = generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=20)[0, len(PROMPT) :]
        assert list(sample_one([network], PROMPT, rule, eos=[EOS_ID]).token_ids) == expected.tolist()


def test_greedy_contrast_is_an_independent_argmax(networks: list[LlamaForCausalLM]) -> None:
    rule = SamplingParameters.contrastive(0.4, temperature=0.0, max_tokens=8)
    token_ids = list(PROMPT)
    for _ in range(8):
        aligned, base = (n(input_ids=torch.tensor([token_ids])).logits[0, -1].log_softmax(-1) for n in networks[:2])
        scores = torch.where(aligned >= aligned.max() + math.log(0.1), aligned - 0.6 * base, -math.inf)
        token_ids.append(int(scores.argmax()))
    assert list(sample_one(networks[:2], PROMPT, rule).token_ids) == token_ids[len(PROMPT) :]


def test_logprobs_of_a_sample_are_those_of_scoring_it(networks: list[LlamaForCausalLM]) -> None:
    rule = SamplingParameters(weights=(1.0, -0.6, 0.2), max_tokens=12, seed=3)
    sample = sample_one(networks, PROMPT, rule, eos=[EOS_ID])
    scores = reference_score(networks, PROMPT, sample.token_ids)
    assert len(scores) == len(sample.logprobs) == 3
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(sample.logprobs), rtol=0, atol=1e-5)


def test_networks_of_weight_zero_change_nothing(networks: list[LlamaForCausalLM]) -> None:
    plain = SamplingParameters.plain(max_tokens=12, seed=5)
    alone = sample_one(networks[:1], PROMPT, plain)
    beside = sample_one(networks, PROMPT, plain.model_copy(update={"weights": (1.0, 0.0, 0.0)}))
    assert alone.token_ids == beside.token_ids
    assert alone.mixture_logprobs == pytest.approx(beside.mixture_logprobs, abs=1e-6)


def test_swapping_the_pair_flips_the_sign_of_the_implicit_reward(networks: list[LlamaForCausalLM]) -> None:
    completion = (5, 9, 19, 3)
    forward = torch.tensor(reference_score(networks[:2], PROMPT, completion))
    backward = torch.tensor(reference_score(networks[1::-1], PROMPT, completion))
    torch.testing.assert_close(forward[0] - forward[1], -(backward[0] - backward[1]))


def test_seed_and_sample_index_decide_the_draws(networks: list[LlamaForCausalLM]) -> None:
    def drawn(seed: int, index: int) -> tuple[int, ...]:
        return sample_one(networks[:1], PROMPT, SamplingParameters.plain(max_tokens=12, seed=seed), index).token_ids

    assert drawn(1, 0) == drawn(1, 0)
    assert len({drawn(seed, index) for seed in range(4) for index in range(4)}) > 12


ALWAYS_2 = [0.0, 0.0, 9.0, 3.0, 0.0]
GREEDY = SamplingParameters.plain(temperature=0.0, max_tokens=6)


@pytest.mark.parametrize(
    ("changes", "eos", "token_ids", "finish_reason"),
    [
        ({}, [2], (2,), "stop"),
        ({}, [], (2,) * 6, "length"),
        ({"stop_token_ids": (2,)}, [], (2,), "stop"),
        ({"ignore_eos": True}, [2], (2,) * 6, "length"),
        ({"ignore_eos": True, "stop_token_ids": (2,)}, [2], (2,), "stop"),
        # The end is not drawn before min_tokens: the second best token is.
        ({"min_tokens": 3}, [2], (3, 3, 3, 2), "stop"),
        ({"min_tokens": 3, "stop_token_ids": (3,)}, [2], (0, 0, 0, 2), "stop"),
        ({"min_tokens": 6}, [2], (3,) * 6, "length"),
        ({"min_tokens": 3, "ignore_eos": True}, [2], (2,) * 6, "length"),
        # The head set holds nothing but the end: it is drawn, and does not end the row yet.
        ({"min_tokens": 3, "head_lambda": 0.9}, [2], (2, 2, 2, 2), "stop"),
        ({"max_tokens": 1}, [2], (2,), "stop"),
    ],
)
def test_rows_end_when_they_should(
    changes: dict[str, object], eos: list[int], token_ids: tuple[int, ...], finish_reason: str
) -> None:
    sample = sample_one([fixed_logits(ALWAYS_2)], (1,), GREEDY.model_copy(update=changes), eos=eos)
    assert sample.token_ids == token_ids
    assert sample.finish_reason == finish_reason


def test_rows_of_one_batch_end_on_their_own() -> None:
    rules = [GREEDY.model_copy(update={"max_tokens": limit}) for limit in (3, 1, 5)]
    samples = reference_sample([fixed_logits(ALWAYS_2)], [(1,)] * 3, rules, [0, 0, 0], [])
    assert [len(sample.token_ids) for sample in samples] == [3, 1, 5]


def test_a_penalty_sees_what_its_rule_says() -> None:
    network = fixed_logits([0.0, 2.0, 1.5, 0.0])
    penalty = GREEDY.model_copy(update={"repetition_penalty": 3.0, "max_tokens": 2})
    # Token 1 stands in the prompt: the additive rule does not mind until it is generated.
    additive = sample_one([network], (1, 3), penalty)
    assert additive.token_ids == (1, 2)
    multiplicative = sample_one([network], (1, 3), penalty.model_copy(update={"penalty_rule": "multiplicative"}))
    assert multiplicative.token_ids[0] == 2


def test_padded_logits_are_cut_to_the_shared_width() -> None:
    narrow, wide = fixed_logits([0.0, 1.0, 0.5, 0.2]), fixed_logits([0.0, 1.0, 0.5, 0.2, 7.0, 7.0])
    rule = SamplingParameters(weights=(1.0, -0.5), head_lambda=0.0, max_tokens=3)
    pair = sample_one([narrow, wide], (1,), rule)
    twice = sample_one([narrow, narrow], (1,), rule)
    assert pair.token_ids == twice.token_ids
    assert pair.logprobs[1] == pytest.approx(twice.logprobs[1])
    assert reference_score([narrow, wide], (1,), (2, 1))[1] == pytest.approx(reference_score([narrow], (1,), (2, 1))[0])


def test_prompts_of_unequal_length_are_a_programmers_mistake() -> None:
    with pytest.raises(AssertionError, match="equal length"):
        reference_sample([fixed_logits(ALWAYS_2)], [(1,), (1, 1)], [GREEDY] * 2, [0, 0], [])


def test_stop_strings_are_refused_by_a_sampler_without_a_tokenizer() -> None:
    with pytest.raises(AssertionError, match="stop strings"):
        sample_one([fixed_logits(ALWAYS_2)], (1,), GREEDY.model_copy(update={"stop": ("a",)}))
