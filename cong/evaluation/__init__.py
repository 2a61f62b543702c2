"""Judging trained models on held-out prompts: answers in, a record and a report out; changes nothing that it judges.

Answers come from a network or from a file, rewards from a program, a weak pair or a reward model. Knows no training
and no lab; the lab's gold reward is a program like any other.
"""

from cong.evaluation.answers import Answer, AnswerSet, answer_set, read_answers
from cong.evaluation.comparing import Meetings, length_controlled_win_rate, meet, win_rate
from cong.evaluation.evaluate import Evaluation, evaluate, write_evaluation
from cong.evaluation.gap import gap_recovered
from cong.evaluation.judges.implicit import ImplicitReward
from cong.evaluation.judges.opening import open_judge
from cong.evaluation.judges.program import GoldProgram
from cong.evaluation.judges.reward_model import RewardModelScore
from cong.evaluation.judging import Judge, Judged, Measurement, Reading, TokenReading, judge_answers
from cong.evaluation.misfit import Misfit, misfit, token_misfit
from cong.evaluation.page import evaluation_page
from cong.evaluation.plan import plan
from cong.evaluation.results import EvaluationResult
from cong.evaluation.summary import summarise
from cong.evaluation.sweep import SweepPoint, sweep

__all__ = [
    "Answer",
    "AnswerSet",
    "Evaluation",
    "EvaluationResult",
    "GoldProgram",
    "ImplicitReward",
    "Judge",
    "Judged",
    "Measurement",
    "Meetings",
    "Misfit",
    "Reading",
    "RewardModelScore",
    "SweepPoint",
    "TokenReading",
    "answer_set",
    "evaluate",
    "evaluation_page",
    "gap_recovered",
    "judge_answers",
    "length_controlled_win_rate",
    "meet",
    "misfit",
    "open_judge",
    "plan",
    "read_answers",
    "summarise",
    "sweep",
    "token_misfit",
    "win_rate",
    "write_evaluation",
]
