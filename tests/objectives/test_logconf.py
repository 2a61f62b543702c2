"""Auxiliary confidence for binary classes as released. Legend: N examples, 2 classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cong.objectives import class_threshold, cross_entropy, linear_ramp, logconf_losses, product_target, released_ramp

LOGITS = torch.tensor([[2, 0], [0.5, 0], [0, 0.3], [0, 1.5]])
WEAK = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8]])


def mean_loss(coefficient: float) -> float:
    threshold = class_threshold(LOGITS.softmax(-1), WEAK)
    return logconf_losses(LOGITS, WEAK, coefficient=coefficient, threshold=threshold).mean().item()


def test_the_threshold_has_its_vector() -> None:
    threshold = class_threshold(LOGITS.softmax(-1), WEAK)
    assert threshold.item() == pytest.approx(0.524008, abs=1e-6)
    assert (LOGITS.softmax(-1)[:, 0] >= threshold).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("coefficient", "loss"),
    [
        (0.0, 0.596693),
        (released_ramp(0.05, 0.5, 0.1), 0.590256),
        (linear_ramp(0.05, 0.5, 0.1), 0.532318),
        (0.5, 0.467943),
        (0.75, 0.403568),
    ],
)
def test_the_losses_have_their_vectors(coefficient: float, loss: float) -> None:
    assert mean_loss(coefficient) == pytest.approx(loss, abs=1e-6)


def test_the_product_target_has_its_vectors() -> None:
    target = product_target(LOGITS, WEAK)
    assert target[:, 0].tolist() == pytest.approx([0.985186, 0.414038, 0.526342, 0.052835], abs=1e-6)
    assert cross_entropy(target, LOGITS.log_softmax(-1)).mean().item() == pytest.approx(0.479135, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 15), st.floats(0, 1))
def test_halves_with_the_threshold_of_the_whole_average_to_the_whole(seed: int, cut: int, coefficient: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(16, 2, generator=generator, dtype=torch.float64)
    weak = torch.softmax(torch.randn(16, 2, generator=generator, dtype=torch.float64), -1)
    threshold = class_threshold(logits.softmax(-1), weak)

    def loss_sum(rows: slice) -> Tensor:
        return logconf_losses(logits[rows], weak[rows], coefficient=coefficient, threshold=threshold).sum()

    torch.testing.assert_close(loss_sum(slice(cut)) + loss_sum(slice(cut, None)), loss_sum(slice(None)))


def test_the_threshold_matches_the_shares_of_the_weak_labels() -> None:
    torch.manual_seed(0)
    probs = torch.randn(1000, 2, dtype=torch.float64).softmax(-1)
    weak = torch.tensor([[0.3, 0.7]], dtype=torch.float64).expand(1000, 2)
    share_of_class_0 = (probs[:, 0] >= class_threshold(probs, weak)).double().mean().item()
    assert share_of_class_0 == pytest.approx(0.3, abs=2e-3)
