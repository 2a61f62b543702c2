"""What a pipeline's page says of its judgements: one judge and one decoding at a time."""

from cong.config.evaluation import EvaluationConfig, ProgramJudge
from cong.evaluation import Answer, EvaluationResult, GoldProgram, answer_set, judge_answers, summarise
from cong.lab.world import ideal_response
from cong.pipeline.judged import judged_summary
from cong.schemas import Prompt

PROMPTS = [Prompt(text=text) for text in ("Sdbgaf=", "Sabcde=", "Scbaed=", "Sfedcb=")]
WRONG = "!"


def judged_at_two_temperatures() -> EvaluationResult:
    """ConG answers half of the prompts well at temperature 1, and all of them greedily."""
    num_right = {("weak aligned", "T=1"): 0, ("ConG", "T=1"): 2, ("ceiling", "T=1"): 4}
    num_right |= {("weak aligned", "greedy"): 0, ("ConG", "greedy"): 4, ("ceiling", "greedy"): 4}
    sets = [
        answer_set(
            name,
            decoding,
            PROMPTS,
            [
                Answer(prompt, ideal_response(prompt.text or "") if place < number else WRONG)
                for place, prompt in enumerate(PROMPTS)
            ],
        )
        for (name, decoding), number in num_right.items()
    ]
    names = dict.fromkeys(name for name, _ in num_right)
    settings = EvaluationConfig.model_validate(
        {
            "candidates": {name: {"source": name} for name in names},
            "temperatures": [1.0, 0.0],
            "gap": {"floor": "weak aligned", "ceiling": "ceiling"},
        }
    )
    gold = GoldProgram("gold", ProgramJudge(kind="program", function="cong.lab.world:gold_reward"))
    return summarise(sets, [judge_answers(gold, sets)], settings)


def test_the_summary_tells_rewards_and_gaps_of_the_same_decoding() -> None:
    result = judged_at_two_temperatures()
    shares = {gap.decoding: gap.recovered.mean for gap in result.gaps if gap.recovered is not None}
    assert shares == {"T=1": 0.5, "greedy": 1.0}
    rewards, gaps = judged_summary(result).split(" Of the gap to the ceiling they recover: ")
    assert "ConG 0.500 [" in rewards
    assert gaps.startswith("ConG 50%")
