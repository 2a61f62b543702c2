"""Response tokens of padded and packed batches. Legend: B rows, T positions, S responses, N response tokens."""

import pytest
import torch

from cong.objectives import ResponseTokens, response_tokens

PADDED_IDS = torch.tensor([[7, 8, 1, 2, 0], [9, 3, 4, 5, 6], [7, 7, 7, 2, 0]])
PADDED_MASK = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0]], dtype=torch.bool)
PACKED_IDS = torch.tensor([[7, 8, 1, 2, 9, 3, 4, 5, 6, 0], [7, 7, 7, 2, 0, 0, 0, 0, 0, 0]])
PACKED_MASK = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
PACKED_SEQUENCES = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 9], [2, 2, 2, 2, 9, 9, 9, 9, 9, 9]])


def test_padded_and_packed_rows_give_the_same_responses() -> None:
    padded = response_tokens(PADDED_IDS, PADDED_MASK)
    packed = response_tokens(PACKED_IDS, PACKED_MASK, sequence_ids_BT=PACKED_SEQUENCES)
    assert padded.token_ids_N.tolist() == packed.token_ids_N.tolist() == [1, 2, 3, 4, 5, 6, 2]
    assert padded.lengths == packed.lengths == (2, 4, 1)


@pytest.mark.parametrize(
    ("ids", "mask", "sequences"), [(PADDED_IDS, PADDED_MASK, None), (PACKED_IDS, PACKED_MASK, PACKED_SEQUENCES)]
)
def test_the_row_of_a_token_is_the_position_before_it(
    ids: torch.Tensor, mask: torch.Tensor, sequences: torch.Tensor | None
) -> None:
    responses = response_tokens(ids, mask, sequence_ids_BT=sequences)
    following_BT1 = ids.roll(-1, dims=1)[..., None]
    assert torch.equal(responses.rows(following_BT1)[:, 0], responses.token_ids_N)


def test_sums_and_totals_are_those_of_a_plain_loop() -> None:
    responses = response_tokens(PADDED_IDS, PADDED_MASK)
    values_N = torch.arange(7.0)
    assert responses.sequence_sums(values_N).tolist() == [0 + 1, 2 + 3 + 4 + 5, 6]
    assert responses.total(values_N, "tokens").item() == 21
    assert responses.total(values_N, "sequences").item() == pytest.approx(1 / 2 + 14 / 4 + 6)


def test_a_response_without_tokens_counts_as_one_and_adds_nothing() -> None:
    mask = PADDED_MASK.clone()
    mask[1] = False
    responses = response_tokens(PADDED_IDS, mask)
    assert responses.count("sequences") == 3
    assert responses.sequence_sums(torch.ones(3)).tolist() == [2, 0, 1]
    assert responses.total(torch.ones(3), "sequences").item() == 2


def test_units_are_counted() -> None:
    responses = response_tokens(PADDED_IDS, PADDED_MASK, pairs=[(0, 1), (0, 2)])
    assert [responses.count(unit) for unit in ("tokens", "sequences", "pairs")] == [7, 3, 2]
    chosen, rejected = responses.chosen_and_rejected(torch.tensor([10.0, 20.0, 30.0]))
    assert (chosen.tolist(), rejected.tolist()) == ([10, 10], [20, 30])


def test_frozen_logprobs_come_in_the_order_of_the_tokens() -> None:
    logprobs_BT = -PADDED_IDS.float()
    responses = response_tokens(PADDED_IDS, PADDED_MASK, frozen={"base": logprobs_BT[PADDED_MASK]})
    assert torch.equal(responses.frozen_logprobs("base"), -responses.token_ids_N.float())
    with pytest.raises(AssertionError, match="reference"):
        responses.frozen_logprobs("reference")


def test_moving_to_a_device_keeps_everything() -> None:
    responses = response_tokens(
        PADDED_IDS, PADDED_MASK, pairs=[(0, 1)], frozen={"base": torch.zeros(7)}, weak_logprobs_NV=torch.zeros(7, 3)
    )
    moved = responses.to("meta")
    assert {moved.token_ids_N.device.type, moved.positions_N.device.type, moved.frozen["base"].device.type} == {"meta"}
    assert moved.weak_logprobs_NV is not None
    assert moved.weak_logprobs_NV.device.type == "meta"
    assert (moved.lengths, moved.pairs) == (responses.lengths, responses.pairs)


def test_a_token_that_nothing_predicts_is_refused() -> None:
    mask = PADDED_MASK.clone()
    mask[0, 0] = True
    with pytest.raises(AssertionError, match="nothing predicts"):
        response_tokens(PADDED_IDS, mask)
    packed_mask = PACKED_MASK.clone()
    packed_mask[0, 4] = True  # the first token of the second sequence: its row would be another sequence's last
    with pytest.raises(AssertionError, match="begins its sequence"):
        response_tokens(PACKED_IDS, packed_mask, sequence_ids_BT=PACKED_SEQUENCES)


def test_tensors_that_do_not_fit_are_refused() -> None:
    ids = torch.tensor([1, 2, 3])
    with pytest.raises(AssertionError, match="add up to 2"):
        ResponseTokens(ids, ids, lengths=(1, 1))
    with pytest.raises(AssertionError, match="pair of no response"):
        ResponseTokens(ids, ids, lengths=(1, 2), pairs=((0, 2),))
    with pytest.raises(AssertionError, match="aligned"):
        ResponseTokens(ids, ids, lengths=(3,), frozen={"aligned": torch.zeros(4)})
