"""How far a student has moved from its weak teacher: three distances of next-token distributions.

For squared loss over a convex class that contains the truth, the student's risk is at most the teacher's minus the
squared misfit (Charikar et al., 2024); for KL the same holds of KL(student || weak) (Mulgund and Pabbaraju, 2025). So a
large misfit is no fault by itself.

Legend: N points, V vocabulary or classes, T positions.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from cong.errors import EvaluationError
from cong.evaluation.answers import AnswerSet
from cong.evaluation.judges.implicit import completion_ids
from cong.evaluation.results import MisfitResult
from cong.models import NetworkSet, prompt_token_ids
from cong.telemetry import track

_POSITIONS_AT_ONCE = 256
"""Rows of the vocabulary's width that exist in float32 at a time."""


@dataclass(frozen=True)
class Misfit:
    """Means over points."""

    num_points: int
    squared: float
    kl_student_weak: float
    kl_weak_student: float
    agreement: float
    student_entropy: float
    weak_entropy: float


def misfit(student_NV: Tensor, weak_NV: Tensor) -> Misfit:
    """Misfit of two sets of log-distributions, row by row; minus infinity is a probability of 0."""
    return mean_misfit([(student_NV, weak_NV)])


def mean_misfit(parts: Iterable[tuple[Tensor, Tensor]]) -> Misfit:
    """The same over parts that do not have to be in memory together."""
    totals = torch.zeros(6, dtype=torch.float64)
    num_points = 0
    for student_NV, weak_NV in parts:
        if student_NV.shape != weak_NV.shape:
            raise EvaluationError(
                f"misfit compares rows of equal width; the student's are {tuple(student_NV.shape)} and the weak "
                f"model's {tuple(weak_NV.shape)}"
            )
        s_NV, w_NV = student_NV.double(), weak_NV.double()
        p_NV, q_NV = s_NV.exp(), w_NV.exp()
        totals += torch.stack(
            [
                ((p_NV - q_NV) ** 2).sum(),
                _cross(p_NV, s_NV) - _cross(p_NV, w_NV),
                _cross(q_NV, w_NV) - _cross(q_NV, s_NV),
                (s_NV.argmax(-1) == w_NV.argmax(-1)).double().sum(),
                -_cross(p_NV, s_NV),
                -_cross(q_NV, w_NV),
            ]
        )
        num_points += len(s_NV)
    if num_points == 0:
        raise EvaluationError("misfit needs at least one point, and there is none")
    if not torch.isfinite(totals).all():
        raise EvaluationError(
            "misfit is not finite: one distribution gives no probability to what the other gives some; compare "
            "unmasked distributions"
        )
    squared, reverse, forward, agreement, student_entropy, weak_entropy = (totals / num_points).tolist()
    # Rounding may leave a distance of equals just below 0.
    return Misfit(num_points, squared, max(0.0, reverse), max(0.0, forward), agreement, student_entropy, weak_entropy)


def _cross(p_NV: Tensor, log_NV: Tensor) -> Tensor:
    """Sum of p log q, where p = 0 counts nothing."""
    return torch.where(p_NV > 0.0, p_NV * log_NV, 0.0).sum()


def token_misfit(networks: NetworkSet, answers: AnswerSet, student: str, weak: str) -> MisfitResult:
    """Misfit of the first network to the second over every token of a set of answers."""
    found = mean_misfit(_parts(networks, answers))
    return MisfitResult(student=student, weak=weak, set_label=answers.label, **asdict(found))


@torch.no_grad()
def _parts(networks: NetworkSet, answers: AnswerSet) -> Iterator[tuple[Tensor, Tensor]]:
    device = networks.networks[0].device
    for answer in track(answers.answers, f"misfit on {answers.label}", unit="answers"):
        ids = completion_ids(answer, networks)
        prompt_ids = prompt_token_ids(networks.tokenizer, answer.prompt)
        if networks.context_length is not None and len(prompt_ids) + len(ids) > networks.context_length:
            raise EvaluationError(
                f"{answer.where} has {len(prompt_ids) + len(ids)} tokens with its prompt, and the networks read "
                f"{networks.context_length}; shorten it or leave misfit out"
            )
        if not ids:
            continue
        sequence_1T = torch.tensor([[*prompt_ids, *ids]], device=device)
        both_TV = [
            network.model(input_ids=sequence_1T, use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
            for network in networks.networks
        ]
        for start in range(0, len(ids), _POSITIONS_AT_ONCE):
            student_NV, weak_NV = (
                logits_TV[start : start + _POSITIONS_AT_ONCE, : networks.shared_vocab_size]
                .float()
                .log_softmax(-1)
                .cpu()
                for logits_TV in both_TV
            )
            yield student_NV, weak_NV
