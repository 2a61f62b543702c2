"""SFT on response tokens: a known answer for both conventions of the mean."""

import pytest
import torch

from cong.objectives import SFT, PolicyScores, ResponseTokens, combine_metrics


def test_a_long_response_weighs_more_only_in_the_mean_over_tokens() -> None:
    ids = torch.zeros(4, dtype=torch.long)
    responses = ResponseTokens(ids, ids, lengths=(1, 3))
    policy = PolicyScores(torch.tensor([-8.0, -1.0, -2.0, -3.0]))
    over_tokens = SFT()(policy, responses, progress=0.0)
    over_sequences = SFT(mean_over="sequences")(policy, responses, progress=0.0)
    assert over_tokens.loss(responses.count("tokens")).item() == pytest.approx((8 + 1 + 2 + 3) / 4)
    assert over_sequences.loss(responses.count("sequences")).item() == pytest.approx((8 + 2) / 2)
    assert combine_metrics([over_tokens.metrics])["token_logprob"] == pytest.approx(-3.5)
