"""Replicas follow the load up and down, and what was accepted is answered on the way down."""

import pytest

from .application import Deployed, eventually
from .load import under_load

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 2.0,
    "look_back_period_s": 2.0,
}
"""The shipped file's way with its delays shortened."""
LONG = {"prompt": "Sdbgaf=", "num_samples": 32, "parameters": {"max_tokens": 48, "min_tokens": 48, "ignore_eos": True}}


@pytest.mark.filterwarnings("ignore:`look_back_period_s`:FutureWarning")
def test_replicas_follow_the_load_up_and_down(deployed: Deployed) -> None:
    deployed.deploy()
    deployed.begin(autoscaling_config=SCALING)
    with deployed.http() as http:
        with under_load(http, num_at_once=6, body=LONG) as heavy:
            eventually(lambda: len(deployed.replicas()) == 2, "a second replica")
        # Less than one replica is meant to hold, but never nothing: it goes on while one of them stops.
        with under_load(http, num_at_once=1) as light:
            eventually(
                lambda: len(deployed.replicas()) == 1 and not deployed.replicas("STOPPING"), "one replica is left"
            )
            light.wait_for(4)
    assert heavy.outcomes
    assert light.outcomes
    assert heavy.failures == light.failures == []
