"""Misfit in its three forms against worked examples, and over networks against plain arithmetic."""

import math

import pytest
import torch

from cong.errors import EvaluationError
from cong.evaluation import Answer, answer_set, misfit, token_misfit
from cong.lab.networks import EOS_ID, prompt_ids, response_ids
from cong.models import join_networks, load_network
from cong.schemas import Prompt

from .conftest import LabPair


def log(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_two_kl_forms_have_their_known_values() -> None:
    student, weak = log([[0.6, 0.3, 0.1]]), log([[0.5, 0.3, 0.2]])
    found = misfit(student, weak)
    assert found.kl_weak_student == pytest.approx(0.047469, abs=1e-6)
    assert found.kl_student_weak == pytest.approx(0.040078, abs=1e-6)
    assert found.squared == pytest.approx(0.02)
    # Cross entropies: forward H(weak) + KL(weak, student), reverse H(student) + KL(student, weak).
    assert found.weak_entropy + found.kl_weak_student == pytest.approx(1.077122, abs=1e-6)
    assert found.student_entropy + found.kl_student_weak == pytest.approx(0.938024, abs=1e-6)
    assert found.agreement == 1.0


def test_the_reverse_form_is_the_gain_of_a_projection() -> None:
    # The student is the projection of the weak distribution onto a segment that contains the truth.
    truth, weak = [0.74, 0.155, 0.105], [0.5, 0.3, 0.2]
    student = [0.582749, 0.168104, 0.249147]
    found = misfit(log([student]), log([weak]))

    def kl(p: list[float], q: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    assert found.kl_student_weak == pytest.approx(0.046625, abs=2e-6)
    assert kl(truth, weak) - kl(truth, student) == pytest.approx(found.kl_student_weak, abs=3e-6)
    assert found.kl_weak_student == pytest.approx(0.053240, abs=2e-6)


def test_the_squared_form_is_the_gain_of_least_squares() -> None:
    # Binary: both classes contribute, so the squared distance of distributions is twice that of probabilities.
    gold, weak = [1.0, 0.0, 1.0, 0.0, 1.0], [0.6, 0.7, 0.8, 0.4, 0.3]
    student = [17 / 30, 0.55, 17 / 30, 0.55, 17 / 30]
    found = misfit(log([[p, 1 - p] for p in student]), log([[p, 1 - p] for p in weak]))

    def risk(predicted: list[float]) -> float:
        return sum((p - g) ** 2 for p, g in zip(predicted, gold, strict=True)) / len(gold)

    assert [risk(weak), risk(student)] == pytest.approx([0.268, 0.233667], abs=1e-6)
    assert found.squared / 2 == pytest.approx(0.034333, abs=1e-6)
    assert found.squared / 2 == pytest.approx(risk(weak) - risk(student), abs=1e-6)
    assert found.agreement == pytest.approx(3 / 5)


def test_equals_do_not_misfit_even_with_zeros() -> None:
    rows = log([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    found = misfit(rows, rows)
    assert (found.squared, found.kl_student_weak, found.kl_weak_student, found.agreement) == (0.0, 0.0, 0.0, 1.0)


def test_a_distribution_without_room_for_the_other_is_refused() -> None:
    with pytest.raises(EvaluationError, match="not finite"):
        misfit(log([[0.5, 0.5]]), log([[1.0, 0.0]]))
    with pytest.raises(EvaluationError, match="equal width"):
        misfit(log([[0.5, 0.5]]), log([[1.0]]))
    with pytest.raises(EvaluationError, match="at least one point"):
        misfit(torch.zeros(0, 2), torch.zeros(0, 2))


def test_misfit_over_answers_is_that_of_their_tokens(lab_pair: LabPair) -> None:
    student = load_network(str(lab_pair.aligned), role="strong", dtype="float32", device="cpu")
    weak = load_network(str(lab_pair.base), role="aligned", dtype="float32", device="cpu")
    said = {"Mabcde=": ">bcdef.", "Sdbgaf=": "!dbgaf;ab"}
    prompts = [Prompt(text=text) for text in said]
    answers = answer_set("a", "given", prompts, [Answer(prompt, said[prompt.text or ""]) for prompt in prompts])
    found = token_misfit(join_networks([student, weak]), answers, "student", "weak")

    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    for text, answer in said.items():
        before, after = prompt_ids(text), [*response_ids(answer)]
        after = after if after[-1] == EOS_ID else [*after, EOS_ID]
        with torch.no_grad():
            s, w = (
                network.model(input_ids=torch.tensor([[*before, *after]])).logits[0].log_softmax(-1)
                for network in (student, weak)
            )
        rows += [(s[len(before) - 1 + place], w[len(before) - 1 + place]) for place in range(len(after))]
    assert found.num_points == len(rows) == 8 + 10
    kl = sum(float((s.exp() * (s - w)).sum()) for s, w in rows) / len(rows)
    squared = sum(float(((s.exp() - w.exp()) ** 2).sum()) for s, w in rows) / len(rows)
    assert found.kl_student_weak == pytest.approx(kl, rel=1e-4)
    assert found.squared == pytest.approx(squared, rel=1e-4)
    assert found.kl_student_weak > 0.01
