"""Log-probabilities of tokens, and what memory they take.

Legend: B rows, T positions, N rows in one line, K ids at each, V vocabulary.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cong.objectives import (
    fused_logprobs,
    gather_logprobs,
    implicit_reward,
    masked_mean,
    masked_sum,
    sequence_logprobs,
    token_logprobs,
)

ALIGNED = torch.tensor([2.0, 1.7, 0.2, -1.5, -4.0])
BASE = torch.tensor([2.2, 0.7, 0.5, -1.0, -9.0])
A, B, C = 0, 1, 2


def example() -> tuple[Tensor, Tensor]:
    """A prompt of one token, the response B, C, A, and padding."""
    return torch.tensor([[3, B, C, A, 0]]), torch.tensor([[0, 1, 1, 1, 0]])


def test_the_worked_example_has_its_sequence_logprobs() -> None:
    token_ids_BT, mask_BT = example()
    aligned = sequence_logprobs(ALIGNED.expand(1, 5, 5), token_ids_BT, mask_BT)
    base = sequence_logprobs(BASE.expand(1, 5, 5), token_ids_BT, mask_BT)
    assert aligned.item() == pytest.approx(-4.086197, abs=1e-6)
    assert base.item() == pytest.approx(-4.307627, abs=1e-6)


def test_the_worked_example_has_its_implicit_reward() -> None:
    token_ids_BT, mask_BT = example()
    aligned_BT = token_logprobs(ALIGNED.expand(1, 5, 5), token_ids_BT)
    base_BT = token_logprobs(BASE.expand(1, 5, 5), token_ids_BT)
    reward = implicit_reward(aligned_BT, base_BT, mask_BT)
    assert reward.sum_B.item() == pytest.approx(0.221429, abs=1e-6)
    assert reward.mean_B.item() == pytest.approx(0.073810, abs=1e-6)
    swapped = implicit_reward(base_BT, aligned_BT, mask_BT)
    torch.testing.assert_close(swapped.sum_B, -reward.sum_B)
    torch.testing.assert_close(swapped.mean_B, -reward.mean_B)


def test_an_entry_belongs_to_the_token_it_stands_under() -> None:
    torch.manual_seed(0)
    logits_BTV, token_ids_BT = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    expected_BT = torch.zeros(2, 5)
    for b in range(2):
        for t in range(1, 5):
            expected_BT[b, t] = torch.log_softmax(logits_BTV[b, t - 1], -1)[token_ids_BT[b, t]]
    torch.testing.assert_close(token_logprobs(logits_BTV, token_ids_BT), expected_BT)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(0, 5, 1), (1, 1, 1), (6, 11, 3), (70, 30_000, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_blocks_change_neither_value_nor_gradient(seed: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    num_rows, num_words, num_ids = shape
    generator = torch.Generator().manual_seed(seed)
    logits_NV = (torch.randn(num_rows, num_words, generator=generator, dtype=dtype) * 4).requires_grad_()
    ids_NK = torch.randint(0, num_words, (num_rows, num_ids), generator=generator)
    weights_NK = torch.randn(num_rows, num_ids, generator=generator, dtype=dtype)
    plain_NK = torch.log_softmax(logits_NV, -1).gather(-1, ids_NK)
    ours_NK = gather_logprobs(logits_NV, ids_NK)
    torch.testing.assert_close(ours_NK, plain_NK)
    (plain_grad,) = torch.autograd.grad((plain_NK * weights_NK).sum(), logits_NV)
    (our_grad,) = torch.autograd.grad((ours_NK * weights_NK).sum(), logits_NV)
    torch.testing.assert_close(our_grad, plain_grad)


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    logits_NV = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    ids_NK = torch.tensor([[0, 4], [1, 1], [2, 3]])
    assert torch.autograd.gradcheck(lambda z: gather_logprobs(z, ids_NK), (logits_NV,))


def test_half_precision_logits_are_read_in_float32() -> None:
    torch.manual_seed(0)
    half_NV = torch.randn(8, 4000).bfloat16().requires_grad_()
    ids_NK = torch.randint(0, 4000, (8, 1))
    ours_NK = gather_logprobs(half_NV, ids_NK)
    torch.testing.assert_close(ours_NK, torch.log_softmax(half_NV.float(), -1).gather(-1, ids_NK))
    (gradient,) = torch.autograd.grad(ours_NK.sum(), half_NV)
    assert gradient.dtype == torch.bfloat16


def test_nothing_but_the_logits_is_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    logits_NV = torch.randn(64, 500).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gather_logprobs(logits_NV, torch.zeros(64, 1, dtype=torch.long)).sum()
    large = [tensor for tensor in kept if tensor.numel() >= logits_NV.numel()]
    assert [tensor.data_ptr() for tensor in large] == [logits_NV.data_ptr()]


@pytest.mark.filterwarnings("ignore")  # warnings of torch's compiler are not ours to heed
def test_compiled_functions_give_the_same_for_any_number_of_rows() -> None:
    torch.manual_seed(0)
    for num_rows in (7, 12, 0):
        logits_NV = (torch.randn(num_rows, 500) * 4).requires_grad_()
        ids_NK = torch.randint(0, 500, (num_rows, 2))
        ids_NK[:2] = 3  # the same token twice
        weights_NK = torch.randn(num_rows, 2)
        expected_NK, found_NK = gather_logprobs(logits_NV, ids_NK), fused_logprobs(logits_NV, ids_NK)
        torch.testing.assert_close(found_NK, expected_NK, rtol=1e-6, atol=1e-6)
        gradients = [
            torch.autograd.grad(each, logits_NV, weights_NK, retain_graph=True)[0] for each in (found_NK, expected_NK)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    exact_NV = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    ids_NK = torch.tensor([[0, 4], [1, 1], [2, 3]])
    assert torch.autograd.gradcheck(lambda z: fused_logprobs(z, ids_NK), (exact_NV,))


def plain_logprobs(logits_NV: Tensor, ids_NK: Tensor) -> Tensor:
    return torch.log_softmax(logits_NV, -1, dtype=torch.float32).gather(-1, ids_NK)


def peak_bytes(work: Callable[[], None], folder: Path) -> int:
    """What the allocator holds at most beyond what it held before, as torch's profiler traces it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("logprobs", "bound"), [(gather_logprobs, 2.0), (fused_logprobs, 1.01), (plain_logprobs, None)]
)
def test_a_pass_takes_the_memory_of_its_gradient_and_a_few_blocks(
    logprobs: Callable[[Tensor, Tensor], Tensor], bound: float | None, tmp_path: Path
) -> None:
    logits_NV = torch.randn(512, 16_384).bfloat16().requires_grad_()
    ids_NK = torch.zeros(512, 1, dtype=torch.long)

    def work() -> None:
        logits_NV.grad = None
        logprobs(logits_NV, ids_NK).sum().backward()  # type: ignore[no-untyped-call]

    work()  # what is compiled is compiled here
    logits_NV.grad = None
    share = peak_bytes(work, tmp_path) / (2 * logits_NV.numel())
    # A float32 copy of the logits alone would be 2, beside the gradient of 1.
    assert share > 3 if bound is None else share < bound


def test_what_lies_outside_the_mask_never_counts() -> None:
    values_BT = torch.tensor([[1.0, -torch.inf, 3.0], [torch.nan, 5.0, torch.inf]])
    mask_BT = torch.tensor([[True, False, True], [False, True, False]])
    assert masked_sum(values_BT, mask_BT).tolist() == [4.0, 5.0]
    assert masked_mean(values_BT, mask_BT).tolist() == [2.0, 5.0]


def test_the_mean_over_no_token_is_zero() -> None:
    assert masked_mean(torch.ones(1, 3), torch.zeros(1, 3)).tolist() == [0.0]
