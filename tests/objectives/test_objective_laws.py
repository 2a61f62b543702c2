"""Laws that every objective keeps, checked for each one in the registry on random batches of unequal lengths.

Legend: N response tokens, V vocabulary, D width of the hidden states.
"""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cong.objectives import (
    OBJECTIVES,
    LossShare,
    Mean,
    Objective,
    ResponseTokens,
    combine_metrics,
    objective,
    objective_parameters,
    policy_scores,
    response_tokens,
)

VOCAB, WIDTH = 7, 5
VALUES: list[Objective] = [
    *(objective(name) for name in sorted(OBJECTIVES)),
    objective("sft", mean_over="sequences"),
    objective("dpo", beta=0.5, label_smoothing=0.1),
    objective("wspo", gamma=0.5, clip=0.4, mean_over="tokens"),
    objective("adapt_conf", direction="inverted", mean_over="sequences"),
    objective("soft_labels", direction="reverse"),
]
seeds = st.integers(0, 2**32 - 1)
pair_lengths = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=5)
every_objective = pytest.mark.parametrize("value", VALUES, ids=str)
bounded = settings(deadline=None, max_examples=15)


@dataclass(frozen=True)
class World:
    """Hidden states that a weight turns into logits, with responses in pairs."""

    hidden_ND: Tensor
    weight_VD: Tensor
    responses: ResponseTokens

    @property
    def starts(self) -> list[int]:
        lengths = self.responses.lengths
        return [sum(lengths[:i]) for i in range(len(lengths) + 1)]

    def take(self, order: list[int]) -> "World":
        """The same world with only these responses, in this order; pairs stay where both of theirs are in."""
        starts, whole = self.starts, self.responses
        rows = torch.tensor([n for s in order for n in range(starts[s], starts[s + 1])], dtype=torch.long)
        place = {s: i for i, s in enumerate(order)}
        weak_NV = whole.weak_logprobs_NV
        responses = ResponseTokens(
            token_ids_N=whole.token_ids_N[rows],
            positions_N=torch.arange(len(rows)),
            lengths=tuple(whole.lengths[s] for s in order),
            pairs=tuple((place[c], place[r]) for c, r in whole.pairs if c in place and r in place),
            frozen={network: logprobs_N[rows] for network, logprobs_N in whole.frozen.items()},
            weak_logprobs_NV=None if weak_NV is None else weak_NV[rows],
        )
        return World(self.hidden_ND[rows], self.weight_VD, responses)

    def share(self, value: Objective, progress: float = 0.05) -> LossShare:
        policy = policy_scores(self.hidden_ND @ self.weight_VD.T, self.responses, value.needs)
        return value(policy, self.responses, progress=progress)


def world(seed: int, lengths: list[tuple[int, int]]) -> World:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    num_tokens = sum(chosen + rejected for chosen, rejected in lengths)
    responses = ResponseTokens(
        token_ids_N=torch.randint(0, VOCAB, (num_tokens,), generator=generator),
        positions_N=torch.arange(num_tokens),
        lengths=tuple(length for pair in lengths for length in pair),
        pairs=tuple((2 * i, 2 * i + 1) for i in range(len(lengths))),
        frozen={
            "reference": -random(num_tokens).abs(),
            "aligned": -random(num_tokens).abs(),
            "base": -random(num_tokens).abs(),
        },
        weak_logprobs_NV=torch.log_softmax(random(num_tokens, VOCAB) * 2, -1),
    )
    return World(random(num_tokens, WIDTH), random(VOCAB, WIDTH).requires_grad_(), responses)


def gradient(loss: Tensor, weight_VD: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, weight_VD)
    return found


@every_objective
@bounded
@given(data=st.data(), seed=seeds, lengths=pair_lengths)
def test_ranks_of_unequal_size_average_to_the_whole(
    value: Objective, data: st.DataObject, seed: int, lengths: list[tuple[int, int]]
) -> None:
    whole = world(seed, lengths)
    cut = data.draw(st.integers(1, len(lengths) - 1)) * 2
    everything = list(range(2 * len(lengths)))
    halves = [whole.take(everything[:cut]), whole.take(everything[cut:])]
    num_units = sum(half.responses.count(value.needs.unit) for half in halves)
    assert num_units == whole.responses.count(value.needs.unit)

    losses = [half.share(value).loss(num_units, num_averaged=2) for half in halves]
    expected = whole.share(value).loss(num_units)
    torch.testing.assert_close((losses[0] + losses[1]) / 2, expected)
    averaged = (gradient(losses[0], whole.weight_VD) + gradient(losses[1], whole.weight_VD)) / 2
    torch.testing.assert_close(averaged, gradient(expected, whole.weight_VD))


@every_objective
def test_accumulated_micro_batches_add_up_to_the_whole(value: Objective) -> None:
    whole = world(3, [(1, 5), (2, 2), (4, 1)])
    num_units = whole.responses.count(value.needs.unit)
    accumulated = torch.zeros_like(whole.weight_VD)
    for first in (0, 2, 4):
        loss = whole.take([first, first + 1]).share(value).loss(num_units)
        accumulated += gradient(loss, whole.weight_VD)
    torch.testing.assert_close(accumulated, gradient(whole.share(value).loss(num_units), whole.weight_VD))


def test_means_of_the_halves_would_not_average_to_the_whole() -> None:
    whole, sft = world(3, [(1, 1), (5, 5)]), objective("sft")
    halves = [whole.take([0, 1]), whole.take([2, 3])]
    means = [half.share(sft).loss(half.responses.count("tokens")).item() for half in halves]
    assert abs(sum(means) / 2 - whole.share(sft).loss(12).item()) > 1e-2


@pytest.mark.parametrize("name", [name for name in sorted(OBJECTIVES) if "mean_over" in objective_parameters(name)])
def test_a_mean_over_sequences_is_the_mean_of_each_response_s_mean(name: str) -> None:
    whole = world(5, [(1, 5), (2, 3)])
    over_tokens, over_sequences = (objective(name, mean_over=unit) for unit in ("tokens", "sequences"))
    alone = [whole.take([i]).share(over_tokens).loss(length) for i, length in enumerate(whole.responses.lengths)]
    torch.testing.assert_close(whole.share(over_sequences).loss(4), torch.stack(alone).mean())
    assert abs(whole.share(over_sequences).loss(4) - whole.share(over_tokens).loss(11)) > 1e-3


@every_objective
@bounded
@given(seed=seeds, lengths=pair_lengths, data=st.data())
def test_the_order_of_the_batch_does_not_matter(
    value: Objective, seed: int, lengths: list[tuple[int, int]], data: st.DataObject
) -> None:
    whole = world(seed, lengths)
    order = data.draw(st.permutations(range(2 * len(lengths))))
    torch.testing.assert_close(whole.take(order).share(value).loss_sum, whole.share(value).loss_sum)


@every_objective
@bounded
@given(seed=seeds, lengths=pair_lengths)
def test_metrics_of_shares_combine_into_those_of_the_whole(
    value: Objective, seed: int, lengths: list[tuple[int, int]]
) -> None:
    whole = world(seed, lengths)
    halves = [whole.take([0, 1]), whole.take(list(range(2, 2 * len(lengths))))]
    together = combine_metrics([half.share(value).metrics for half in halves])
    assert together == pytest.approx(combine_metrics([whole.share(value).metrics]), abs=1e-5)


@every_objective
def test_an_empty_share_adds_nothing_and_reports_the_same_names(value: Objective) -> None:
    whole = world(0, [(2, 3)])
    empty = whole.take([])
    share = empty.share(value)
    assert share.loss_sum.item() == 0
    assert gradient(share.loss_sum, whole.weight_VD).abs().sum().item() == 0
    assert list(share.metrics) == list(whole.share(value).metrics)
    assert combine_metrics([share.metrics]) == {}
    assert combine_metrics([share.metrics, whole.share(value).metrics]) == combine_metrics([whole.share(value).metrics])


@every_objective
def test_metrics_carry_no_gradient(value: Objective) -> None:
    metrics = world(0, [(2, 3), (1, 4)]).share(value).metrics
    assert metrics
    assert not any(mean.total.requires_grad or mean.weight.requires_grad for mean in metrics.values())


@every_objective
def test_an_objective_reads_no_frozen_network_that_it_does_not_ask_for(value: Objective) -> None:
    whole = world(1, [(2, 3), (1, 4)])
    asked = {network: whole.responses.frozen[network] for network in value.needs.frozen}
    fewer = World(whole.hidden_ND, whole.weight_VD, dataclasses.replace(whole.responses, frozen=asked))
    torch.testing.assert_close(fewer.share(value).loss_sum, whole.share(value).loss_sum)
    for missing in asked:
        rest = {network: logprobs for network, logprobs in asked.items() if network != missing}
        with pytest.raises(AssertionError, match=missing):
            World(whole.hidden_ND, whole.weight_VD, dataclasses.replace(whole.responses, frozen=rest)).share(value)


@every_objective
def test_packed_and_padded_rows_have_the_same_loss_and_gradient(value: Objective) -> None:
    """Three sequences with a prompt of two tokens: one a row, or all in one row."""
    lengths = (3, 1, 4)
    whole = world(2, [(3, 1), (4, 2)]).take([0, 1, 2])
    columns = 2 + max(lengths)
    padded_ids, padded_mask = torch.zeros(3, columns, dtype=torch.long), torch.zeros(3, columns, dtype=torch.bool)
    packed_ids, packed_mask, packed_sequences = [], [], []
    tokens = whole.responses.token_ids_N.split(lengths)  # type: ignore[no-untyped-call]
    for i, token_ids in enumerate(tokens):
        padded_ids[i, 2 : 2 + len(token_ids)], padded_mask[i, 2 : 2 + len(token_ids)] = token_ids, True
        packed_ids += [6, 6, *token_ids.tolist()]
        packed_mask += [False, False] + [True] * len(token_ids)
        packed_sequences += [i] * (2 + len(token_ids))
    rest = {
        "pairs": ((0, 1), (2, 1)),
        "frozen": whole.responses.frozen,
        "weak_logprobs_NV": whole.responses.weak_logprobs_NV,
    }
    padded = response_tokens(padded_ids, padded_mask, **rest)  # type: ignore[arg-type]
    packed = response_tokens(
        torch.tensor([packed_ids]),
        torch.tensor([packed_mask]),
        sequence_ids_BT=torch.tensor([packed_sequences]),
        **rest,  # type: ignore[arg-type]
    )

    def loss_and_gradient(responses: ResponseTokens, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
        hidden = torch.full((num_rows * num_columns, WIDTH), torch.nan, dtype=torch.float64)
        hidden[responses.positions_N] = whole.hidden_ND  # what is no response's stays unread
        rows_ND = responses.rows(hidden.view(num_rows, num_columns, WIDTH))
        loss = World(rows_ND, whole.weight_VD, responses).share(value).loss(responses.count(value.needs.unit))
        return loss, gradient(loss, whole.weight_VD)

    for ours, theirs in zip(
        loss_and_gradient(padded, 3, columns), loss_and_gradient(packed, 1, len(packed_ids)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_objective
def test_losses_are_float32_whatever_the_logits_are(value: Objective, dtype: torch.dtype) -> None:
    whole = world(4, [(2, 3), (1, 4)])
    responses = dataclasses.replace(
        whole.responses,
        frozen={network: logprobs.float() for network, logprobs in whole.responses.frozen.items()},
        weak_logprobs_NV=torch.log_softmax(torch.zeros(10, VOCAB), -1),
    )
    share = World(whole.hidden_ND.to(dtype), whole.weight_VD.to(dtype), responses).share(value)
    assert share.loss_sum.dtype == torch.float32
    assert bool(share.loss_sum.isfinite())


def test_a_step_without_a_unit_has_no_loss() -> None:
    with pytest.raises(AssertionError, match="without a single unit"):
        world(0, [(1, 1)]).share(objective("sft")).loss(0)


def test_a_metric_is_the_mean_over_all_entries() -> None:
    parts = [{"x": Mean.of(torch.tensor([1.0, 2.0, 3.0]))}, {"x": Mean.of(torch.tensor([10.0]))}]
    assert combine_metrics(parts) == {"x": 4.0}
    assert combine_metrics([{"x": Mean.of(torch.tensor([True, False]))}]) == {"x": 0.5}
