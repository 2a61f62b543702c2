"""What is said of a set of answers: means and shares, how implicit goes with gold reward, what contrast acted on.

Legend: T positions, V vocabulary.
"""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import nn

from cong.lab.answers import Answer
from cong.lab.networks import prompt_ids
from cong.lab.results import CorrelationResult, HealthResult, SetResult
from cong.lab.world import BAD_OPENING, GOOD_OPENING
from cong.statistics import Interval, bootstrap_interval, mean_interval, pearson, quantile_means, spearman


def summarize(answers: Sequence[Answer]) -> SetResult:
    """Means over a set of answers."""
    return SetResult(
        reward=mean_interval([answer.reward for answer in answers], 0.0, 1.0),
        good_opening_share=fmean(answer.judgement.has_good_opening for answer in answers),
        exact_body_share=fmean(answer.judgement.is_body_exact for answer in answers),
        good_ending_share=fmean(answer.judgement.has_good_ending for answer in answers),
        mean_num_tokens=fmean(len(answer.sample.token_ids) for answer in answers),
        empty_share=fmean(not answer.text for answer in answers),
        truncated_share=fmean(answer.is_truncated for answer in answers),
        stray_share=fmean(not answer.text.startswith((GOOD_OPENING, BAD_OPENING)) for answer in answers),
    )


def relate_rewards(answers: Sequence[Answer]) -> CorrelationResult:
    """Implicit against gold reward over a set of answers whose networks begin with the weak pair."""
    means = [answer.implicit_reward_mean for answer in answers]
    sums = [answer.implicit_reward_sum for answer in answers]
    rewards = [answer.reward for answer in answers]
    by_quartile = tuple(quantile_means(means, rewards))
    if len(set(rewards)) == 1:
        # Correlation is not defined; rewards that do not vary show no relation.
        return CorrelationResult(
            pearson=Interval(0.0, 0.0, 0.0), spearman=0.0, pearson_of_sum=0.0, reward_by_quartile=by_quartile
        )
    return CorrelationResult(
        pearson=bootstrap_interval([means, rewards], pearson),
        spearman=spearman(means, rewards),
        pearson_of_sum=pearson(sums, rewards),
        reward_by_quartile=by_quartile,
    )


@torch.no_grad()
def head_health(aligned: nn.Module, answers: Sequence[Answer]) -> HealthResult:
    """Health of the head set over a set of contrastive answers."""
    head_sizes = [size for answer in answers for size in answer.sample.head_sizes]
    num_changed = 0
    for answer in answers:
        prompt = prompt_ids(answer.prompt)
        token_ids = answer.sample.token_ids
        logits_TV = aligned(input_ids=torch.tensor([[*prompt, *token_ids]])).logits[0, len(prompt) - 1 : -1]
        num_changed += int((logits_TV.argmax(-1) != torch.tensor(token_ids)).sum())
    return HealthResult(
        mean_head_size=fmean(head_sizes),
        single_head_share=fmean(size == 1 for size in head_sizes),
        changed_pick_share=num_changed / len(head_sizes),
        num_floored=sum(answer.sample.num_floored for answer in answers),
    )
