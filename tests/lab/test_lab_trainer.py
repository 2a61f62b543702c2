"""The reference trainer: known schedules, a loop written by hand, and what must not move."""

import itertools
import math
import random
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from cong.config.lab import TrainingSettings
from cong.errors import CongError
from cong.lab.networks import build_network, clone, prompt_ids, response_ids
from cong.lab.trainer import (
    Example,
    TrainingStep,
    learning_rate_share,
    num_steps_of,
    pad_batch,
    response_logprobs,
    train,
)
from cong.objectives import DPO, SFT, WSPO, LossShare, Needs, PolicyScores, ResponseTokens

RESPONSES = [">abdfg.", "!dbgaf;ga", ">ab.", "!a;aaaa", ">bcdea."]
SAMPLES = [Example(prompt_ids("Sdbgaf="), (response_ids(text),)) for text in RESPONSES]
PAIRS = [
    Example(prompt_ids(prompt), (response_ids(good), response_ids(bad)))
    for prompt, good, bad in [("Sdbgaf=", ">abdfg.", "!dbgaf;ga"), ("Mabcij=", ">bcdja.", "!abcij;ab")]
]


def small_network(seed: int = 0) -> LlamaForCausalLM:
    return build_network(16, 1, 2, 24, torch.Generator().manual_seed(seed))


def settings(**changes: object) -> TrainingSettings:
    return TrainingSettings.model_validate(
        {"precision": "float32", "batch_size": 2, "num_warmup_steps": 2, "learning_rate": 1e-2, **changes}
    )


def weights(network: LlamaForCausalLM) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def run(network: LlamaForCausalLM, *args: object, **kwargs: object) -> list[TrainingStep]:
    return list(train(network, *args, **kwargs))  # type: ignore[arg-type]


def test_batches_are_padded_on_the_right_and_mark_responses() -> None:
    batch = pad_batch([Example((1, 5), ((7, 2),)), Example((1, 5, 6), ((8,),))])
    assert batch.token_ids_BT.tolist() == [[1, 5, 7, 2], [1, 5, 6, 8]]
    assert batch.response_mask_BT.tolist() == [[False, False, True, True], [False, False, False, True]]
    assert batch.pairs == ()
    paired = pad_batch([Example((1,), ((7, 2), (8,))), Example((1,), ((9,), (4,)))])
    assert paired.token_ids_BT.tolist() == [[1, 7, 2], [1, 8, 0], [1, 9, 0], [1, 4, 0]]
    assert paired.pairs == ((0, 1), (2, 3))


def test_learning_rate_by_hand() -> None:
    shares = [learning_rate_share(step, 12, 4, 0.1) for step in range(12)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4] == 1.0
    assert shares[8] == pytest.approx(0.55)
    assert shares[11] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 7 / 8)))
    assert all(before >= after for before, after in itertools.pairwise(shares[3:]))


def test_the_last_batch_of_an_epoch_may_be_smaller() -> None:
    assert num_steps_of(5, settings(num_epochs=2)) == 6
    steps = run(small_network(), SFT(), SAMPLES, settings(num_epochs=2), random.Random(0))
    assert [step.step for step in steps] == list(range(6))
    assert {step.num_steps for step in steps} == {6}


def test_training_equals_a_loop_written_by_hand() -> None:
    """Its own batches, cross-entropy, clipping, AdamW and schedule."""
    config = settings(num_epochs=2, weight_decay=0.1, max_grad_norm=0.5, final_learning_rate_share=0.2)
    trained, expected = small_network(), small_network()
    steps = run(trained, SFT(), SAMPLES, config, random.Random(3))

    parameters = list(expected.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    rng, count, num_steps = random.Random(3), 0, 6
    for _ in range(2):
        order = list(range(5))
        rng.shuffle(order)
        for chunk in (order[:2], order[2:4], order[4:]):
            total, num_tokens = torch.tensor(0.0), 0
            for place in chunk:
                prompt, response = SAMPLES[place].prompt_ids, SAMPLES[place].responses[0]
                logits = expected(input_ids=torch.tensor([prompt + response])).logits[0]
                total = total + F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(response), reduction="sum")
                num_tokens += len(response)
            loss = total / num_tokens
            gradients = torch.autograd.grad(loss, parameters)
            norm = math.sqrt(sum(float((g * g).sum()) for g in gradients))
            scale = min(1.0, 0.5 / (norm + 1e-6))
            share = (count + 1) / 2 if count < 2 else 0.2 + 0.4 * (1 + math.cos(math.pi * (count - 2) / 4))
            count += 1
            assert steps[count - 1].loss == pytest.approx(loss.item(), abs=1e-5)
            assert steps[count - 1].grad_norm == pytest.approx(norm, rel=1e-4)
            assert steps[count - 1].learning_rate == pytest.approx(1e-2 * share)
            with torch.no_grad():
                for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                    p.mul_(1 - 1e-2 * share * 0.1)
                    m.mul_(0.9).add_(0.1 * scale * g)
                    v.mul_(0.98).add_(0.02 * (scale * g) ** 2)
                    p.sub_(1e-2 * share * (m / (1 - 0.9**count)) / ((v / (1 - 0.98**count)).sqrt() + 1e-8))
    assert count == num_steps
    for a, b in zip(trained.parameters(), expected.parameters(), strict=True):
        # Adam divides by the size of the gradient, so that its rounding shows where a gradient is almost 0.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def test_sft_learns_a_few_samples_by_heart() -> None:
    network = build_network(32, 2, 2, 64, torch.Generator().manual_seed(0))
    examples = [
        Example(prompt_ids(f"{task}dbgaf="), (response_ids(text),))
        for task, text in zip("MOXS", RESPONSES, strict=False)
    ]
    steps = run(network, SFT(), examples, settings(num_epochs=60, batch_size=4), random.Random(0))
    assert steps[0].loss > 3.0
    assert steps[-1].loss < 0.05


def test_dpo_separates_pairs_and_starts_from_ln_2() -> None:
    network = small_network()
    reference = clone(network)
    before = weights(reference)
    config = settings(num_epochs=30)
    steps = run(network, DPO(beta=1.0), PAIRS, config, random.Random(0), {"reference": reference})
    assert steps[0].loss == pytest.approx(math.log(2.0), abs=1e-5)
    assert steps[-1].loss < 0.05
    assert steps[-1].metrics["accuracy"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, reference.parameters(), strict=True))


def test_a_reference_that_is_the_network_itself_is_read_before_it_moves() -> None:
    itself, copied = small_network(), small_network()
    config = settings(num_epochs=3)
    one = run(itself, DPO(beta=1.0), PAIRS, config, random.Random(0), {"reference": itself})
    other = run(copied, DPO(beta=1.0), PAIRS, config, random.Random(0), {"reference": clone(copied)})
    assert [step.loss for step in one] == [step.loss for step in other]


def test_frozen_logprobs_stay_with_their_examples_when_the_order_is_shuffled() -> None:
    # At the first step of WSPO the policy is its reference, so the loss is the mean square of the weak log-ratio.
    network, aligned, base = small_network(0), small_network(1), small_network(2)
    frozen = {"reference": network, "aligned": aligned, "base": base}
    step = run(network, WSPO(gamma=0.5, mean_over="tokens"), SAMPLES, settings(batch_size=2), random.Random(4), frozen)[
        0
    ]
    order = list(range(5))
    random.Random(4).shuffle(order)
    chosen = [SAMPLES[place] for place in order[:2]]
    of_aligned = torch.cat(response_logprobs(aligned, chosen, "float32"))
    of_base = torch.cat(response_logprobs(base, chosen, "float32"))
    assert step.loss == pytest.approx((of_aligned - of_base).square().mean().item(), rel=1e-4)


def test_response_logprobs_do_not_depend_on_what_shares_the_batch() -> None:
    network = small_network()
    together = response_logprobs(network, SAMPLES, "float32")
    for example, batched in zip(SAMPLES, together, strict=True):
        assert batched.shape == (len(example.responses[0]),)
        torch.testing.assert_close(response_logprobs(network, [example], "float32")[0], batched, rtol=0, atol=1e-5)


def test_bfloat16_products_train_to_about_the_same_losses() -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        steps = run(small_network(), SFT(), SAMPLES, settings(precision=precision, num_epochs=4), random.Random(0))
        losses[precision] = [step.loss for step in steps]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.03)
    assert losses["bfloat16"] != losses["float32"]


def test_the_same_seed_trains_to_the_same_bits() -> None:
    first, second, other = small_network(), small_network(), small_network()
    for network, seed in ((first, 0), (second, 0), (other, 1)):
        run(network, SFT(), SAMPLES, settings(precision="bfloat16"), random.Random(seed))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@dataclass(frozen=True)
class Recorder:
    """SFT that writes down the progress it is told."""

    name: ClassVar[str] = "recorder"

    seen: list[float] = field(default_factory=list)

    @property
    def needs(self) -> Needs:
        return Needs("tokens")

    def __call__(self, policy: PolicyScores, responses: ResponseTokens, *, progress: float) -> LossShare:
        self.seen.append(progress)
        return SFT()(policy, responses, progress=progress)


def test_objectives_are_told_the_share_of_steps_that_lies_behind() -> None:
    recorder = Recorder()
    run(small_network(), recorder, SAMPLES, settings(num_epochs=2), random.Random(0))
    assert recorder.seen == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])


def test_divergence_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(CongError, match=r"diverged.*at step \d+; lower the learning rate"):
        run(small_network(), SFT(), SAMPLES, settings(learning_rate=1e30, num_epochs=3), random.Random(0))
