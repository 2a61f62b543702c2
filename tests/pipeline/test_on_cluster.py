"""The pipeline's job on Ray: Ray Train trains, a worker draws, and what comes out is what one process makes."""

import asyncio
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cong.config import RunConfig
from cong.pipeline import run_pipeline
from cong.stream import StreamReader, list_stream, open_store
from cong.train.metrics import read_metrics
from tests.client.service_process import ServiceThread
from tests.pipeline.conftest import NUM_PROMPTS, changed, states
from tests.pipeline.test_kill import LIMIT_S, network_fingerprints, stream_keys
from tests.pipeline.test_methods import of_the_pair

if TYPE_CHECKING:
    import uvicorn

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
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


class Gated(ServiceThread):
    """A service that answers so many requests for samples, and the others once its gate is open."""

    num_free = NUM_PROMPTS // 2

    def server(self, writer_id: str) -> "uvicorn.Server":
        self.gate, self.num_asked = threading.Event(), 0
        server = super().server(writer_id)
        app: Any = server.config.app

        async def gated(scope: Any, receive: Any, send: Any) -> None:
            if scope.get("path") == "/sample":
                self.num_asked += 1
                is_free = self.num_asked <= self.num_free
                while not is_free and not self.gate.is_set():
                    await asyncio.sleep(0.05)
            await app(scope, receive, send)

        server.config.app = gated
        return server


def sampled(config: RunConfig) -> list[str]:
    """Keys of the contrastive samples, in order."""
    (stream,) = config.output_dir.glob("stages/sample/*/stream")
    return [record.key for record in StreamReader(open_store(str(stream))).records()]


def test_training_goes_on_while_samples_are_still_drawn(undisturbed: RunConfig, tmp_path: Path) -> None:
    """Half of the samples are held back until the strong model has been trained on some of the others."""
    from jobs.pipeline import OnCluster

    own = {
        "training_job": {"cpus_per_worker": 0.5},
        "stream": {"read": {"shuffle_rows": 0}},
        "sampling_job": {"in_flight": 2},
        "pipeline": {"methods": ["cong"], "overlaps": True},
    }
    alone = of_the_pair(undisturbed, tmp_path / "alone", own)
    run_pipeline(alone, until="cong-s")
    service = Gated(tmp_path / "service")
    models = alone.models.model_copy(update={"strong": type(alone.models.strong)()})
    service.config = service.config.model_copy(update={"models": models})
    config = changed(alone, {"output_dir": str(tmp_path / "out"), "pipeline": {"url": service.url}})
    seen: list[int] = []

    def watch() -> None:
        until_s = time.monotonic() + LIMIT_S
        stages = config.output_dir / "stages"
        while not any(list(read_metrics(path)) for path in stages.glob("cong-s/*/metrics.jsonl")):
            if time.monotonic() > until_s:
                break
            time.sleep(0.1)
        else:
            seen.extend(list_stream(open_store(str(path))).num_rows for path in stages.glob("sample/*/stream"))
        service.gate.set()

    with service:
        watching = threading.Thread(target=watch)
        watching.start()
        outcome = run_pipeline(config, OnCluster(Path.cwd()), until="cong-s")
        watching.join()
    assert outcome.ran == ["sample", "cong-s"]
    assert seen, "nothing was trained before all samples were there"
    assert 0 < seen[0] <= Gated.num_free
    assert sampled(config) == sampled(alone)
    assert network_fingerprints(config)["cong-s"] == network_fingerprints(alone)["cong-s"]
