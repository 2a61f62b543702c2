"""The loop computes what the reference trainer of the lab computes, on the same examples in the same order."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cong.config.lab import LabConfig, TrainingSettings
from cong.config.train import BatchSettings, OptimizerSettings, ScheduleSettings
from cong.lab import trainer
from cong.lab.networks import build_network, clone
from cong.lab.stages import draw_preferences
from cong.models import register_attention
from cong.objectives import DPO, SFT, WSPO, FrozenNetwork, Objective
from cong.train.data.batch import Example
from cong.train.data.feed import Feed
from cong.train.data.packing import ATTENTION_NAME, attend_packed
from cong.train.data.source import ExampleList
from cong.train.loop import StepReport, run
from cong.train.progress import Progress
from cong.train.schedule import learning_rate_share
from cong.train.torch_backend import TorchBackend

LAB = TrainingSettings(
    batch_size=16, precision="float32", learning_rate=1e-3, num_warmup_steps=2, weight_decay=0.01, max_grad_norm=0.5
)
OPTIMIZER = OptimizerSettings(learning_rate=1e-3, beta2=LAB.adam_beta2, weight_decay=0.01, max_grad_norm=0.5)


def ours(examples: Sequence[trainer.Example], networks: Mapping[FrozenNetwork, Any]) -> list[Example]:
    """The lab's examples with what frozen networks say, in the order in which the lab takes them."""
    known = {name: trainer.response_logprobs(network, examples, "float32") for name, network in networks.items()}
    order = list(range(len(examples)))
    random.Random(1).shuffle(order)
    found = []
    for place in order:
        example = examples[place]
        lengths = [len(response) for response in example.responses]
        found.append(
            Example(
                str(place),
                str(place),
                np.array(example.prompt_ids, dtype=np.int32),
                tuple(np.array(response, dtype=np.int32) for response in example.responses),
                {
                    name: tuple(part.numpy() for part in torch.split(each[place], lengths))
                    for name, each in known.items()
                },
            )
        )
    return found


@pytest.mark.parametrize("objective", [SFT(), SFT(mean_over="sequences"), DPO(beta=0.5), WSPO(gamma=0.5)])
@pytest.mark.parametrize(
    "batches",
    [
        BatchSettings(batch_size=16),
        BatchSettings(batch_size=16, max_tokens_per_micro_batch=150),
        BatchSettings(batch_size=16, is_packed=False),
    ],
    ids=["packed", "packed in micro-batches", "padded"],
)
def test_loss_curve_and_weights_are_those_of_the_reference_trainer(
    objective: Objective, batches: BatchSettings
) -> None:
    start, weak = (build_network(32, 2, 2, 64, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    pairs = draw_preferences(LabConfig.model_validate({"alignment": {"num_pairs": 90}}), 0.1)
    is_paired = objective.needs.unit == "pairs"
    examples = pairs if is_paired else [trainer.Example(pair.prompt_ids, pair.responses[:1]) for pair in pairs]
    networks = {name: start if name != "aligned" else weak for name in objective.needs.frozen}
    wanted = clone(start)
    curve = list(trainer.train(wanted, objective, examples, LAB, random.Random(1), networks))

    trained = clone(start)
    if batches.is_packed:
        register_attention(ATTENTION_NAME, attend_packed)
        trained.set_attn_implementation(ATTENTION_NAME)
    backend = TorchBackend(trained, OPTIMIZER, precision="float32")
    source = ExampleList(ours(examples, networks))
    schedule = ScheduleSettings(num_warmup_steps=2)
    reports: list[StepReport] = []
    num_steps = len(curve)
    feed = Feed(source, batches, unit=objective.needs.unit, frozen_names=objective.needs.frozen)
    run(
        backend,
        objective,
        feed,
        Progress(num_steps, source.position),
        lambda step: 1e-3 * learning_rate_share(schedule, step, num_steps),
        [lambda progress, report: reports.append(report)],
    )
    assert len(reports) == num_steps == 6
    for report, step in zip(reports, curve, strict=True):
        assert report.loss == pytest.approx(step.loss, abs=1e-5)
        assert report.learning_rate == step.learning_rate
        assert report.grad_norm == pytest.approx(step.grad_norm, rel=1e-4)
        # Before the first step all margins are 0, and rounding decides which of them are above.
        ours_of = {name: value for name, value in report.metrics.items() if step.step or name != "accuracy"}
        theirs_of = {name: value for name, value in step.metrics.items() if step.step or name != "accuracy"}
        assert ours_of == pytest.approx(theirs_of, abs=1e-4)
    for weight, other in zip(trained.parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(weight, other, atol=1e-5)
    assert any(
        not torch.equal(weight, other) for weight, other in zip(wanted.parameters(), start.parameters(), strict=True)
    )


def test_schedules_have_the_shapes_that_they_are_named_for() -> None:
    def shares(**settings: Any) -> list[float]:
        return [learning_rate_share(ScheduleSettings(**settings), step, 10) for step in range(10)]

    assert shares(shape="constant", num_warmup_steps=2) == [0.5, *[1.0] * 9]
    assert shares(shape="linear", warmup_share=0.0, final_share=0.0) == pytest.approx(
        [1 - step / 10 for step in range(10)]
    )
    cosine = shares(shape="cosine", warmup_share=0.2, final_share=0.1)
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == pytest.approx(0.55)
    for shape in ("linear", "cosine"):
        settings = ScheduleSettings(shape=shape, num_warmup_steps=2, final_share=0.1)
        last, after = (learning_rate_share(settings, step, 10) for step in (9, 10))
        assert last > after == pytest.approx(0.1), "the final share is that of the step after the last"
    assert cosine == [trainer.learning_rate_share(step, 10, 2, 0.1) for step in range(10)]
