"""The pipeline's job on Ray: Ray Train trains, a worker draws, and what comes out is what one process makes."""

from pathlib import Path

import pytest

from cong.config import RunConfig
from cong.pipeline import run_pipeline
from tests.pipeline.conftest import states
from tests.pipeline.test_kill import network_fingerprints, stream_keys
from tests.pipeline.test_methods import of_the_pair

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Ray's data library warns of its own settings.
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning:ray"),
]

QUICK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@pytest.fixture(autouse=True)
def quick_ray_train(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train looks at its workers more often; and what the job sets in this process's environment goes again."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "120")


def test_a_cluster_makes_what_one_process_makes(undisturbed: RunConfig, tmp_path: Path) -> None:
    from jobs.pipeline import OnCluster

    own = {"training_job": {"cpus_per_worker": 0.5}, "pipeline": {"methods": ["weak-sft"], "overlaps": True}}
    config = of_the_pair(undisturbed, tmp_path / "out", own)
    outcome = run_pipeline(config, OnCluster(Path.cwd()))
    assert outcome.ran == ["plain-samples", "weak-sft", "report"]
    assert set(states(config).values()) == {"done"}
    assert stream_keys(config)["plain-samples"] == stream_keys(undisturbed)["plain-samples"]
    assert network_fingerprints(config)["weak-sft"] == network_fingerprints(undisturbed)["weak-sft"]
