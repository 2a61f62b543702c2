"""Frozen networks are asked once for each response, before training, and their answers outlive the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cong.config.train import BatchSettings, OptimizerSettings
from cong.errors import ConfigError
from cong.lab.networks import load_network as lab_network
from cong.lab.trainer import Example as LabExample
from cong.lab.trainer import response_logprobs
from cong.train import origins
from cong.train.backend import BackendFactory
from cong.train.data.batch import Example, MicroBatch
from cong.train.run import train
from cong.train.scores import FrozenScores, ScoreCache
from cong.train.torch_backend import TorchBackend
from tests.train.ranks import ThreadBackend, on_ranks
from tests.train.runs import DPO, require_equal_runs, stop_after_checkpoints
from tests.train.worlds import network_folder, run_config, sample, write_samples


def example(number: int) -> Example:
    record = sample(number)
    ids = np.array(record.completion_token_ids, dtype=np.int32)
    return Example(
        record.key, record.prompt.prompt_id, np.array(record.prompt_token_ids, dtype=np.int32), (ids, ids[:3])
    )


def lab_scores(folder: Path, examples: Sequence[Example]) -> list[list[float]]:
    network = lab_network(folder)
    asked = [LabExample(tuple(each.prompt_ids), tuple(tuple(side) for side in each.responses)) for each in examples]
    return [scores.tolist() for scores in response_logprobs(network, asked, "float32")]


class Counting:
    """The backend's prediction, counting the responses that it is asked for."""

    def __init__(self, backend: TorchBackend) -> None:
        self._backend = backend
        self.num_responses = 0

    def __call__(self, batch: MicroBatch) -> torch.Tensor:
        self.num_responses += len(batch.responses.lengths)
        return self._backend.predict(batch)


def scores_of(root: Path, batches: BatchSettings) -> tuple[FrozenScores, Counting]:
    network = lab_network(network_folder(root / "network"))
    backend = TorchBackend(network, OptimizerSettings(), precision="float32")
    predict = Counting(backend)
    return FrozenScores("reference", ScoreCache(root / "cache"), predict, backend, batches), predict


PADDED = BatchSettings(is_packed=False, max_tokens_per_micro_batch=100)


def test_scores_are_those_of_the_network_and_each_is_asked_once(tmp_path: Path) -> None:
    examples = [example(number) for number in range(12)]
    scores, predict = scores_of(tmp_path, PADDED)
    found = scores([*examples, *examples[:3]])
    assert predict.num_responses == 24
    for each, wanted in zip(found, lab_scores(tmp_path / "network", examples), strict=False):
        assert np.concatenate(each.frozen["reference"]).tolist() == pytest.approx(wanted, abs=1e-5)
    assert scores(examples)[0].frozen["reference"][0].tolist() == found[0].frozen["reference"][0].tolist()
    assert predict.num_responses == 24

    again, predict = scores_of(tmp_path, PADDED)
    more = again([*examples, example(12)])
    assert predict.num_responses == 2
    assert all(
        np.array_equal(one, other)
        for left, right in zip(more[:12], found[:12], strict=True)
        for one, other in zip(left.frozen["reference"], right.frozen["reference"], strict=True)
    )


def test_what_an_example_brings_along_is_not_asked_for(tmp_path: Path) -> None:
    scores, predict = scores_of(tmp_path, PADDED)
    one = example(0)
    own = tuple(np.full(len(side), -7.0, dtype=np.float32) for side in one.responses)
    (found,) = scores([Example(one.key, one.prompt_id, one.prompt_ids, one.responses, {"reference": own})])
    assert found.frozen["reference"] is own
    assert predict.num_responses == 0


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_file_is_announced_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    examples = [example(number) for number in range(4)]
    scores, _ = scores_of(tmp_path, PADDED)
    before = scores(examples)
    (path,) = (tmp_path / "cache").glob("*.scores")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content) if damage == "flip" else bytes(content[:-5]))
    again, predict = scores_of(tmp_path, PADDED)
    assert "is not what was written" in caplog.text
    after = again(examples)
    assert predict.num_responses == 8
    assert all(
        np.array_equal(left.frozen["reference"][0], right.frozen["reference"][0])
        for left, right in zip(before, after, strict=True)
    )


def pairs_world(root: Path) -> None:
    write_samples(root / "stream", (sample(number, is_plain=True) for number in range(40)), "own")


def test_a_second_run_asks_no_frozen_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs_world(root)
    one, two = (run_config(root, DPO, output_dir=root / name) for name in ("one", "two"))
    train(one, is_quiet=True)

    def refuse(self: TorchBackend, batch: MicroBatch) -> torch.Tensor:
        raise AssertionError("the network was asked again")

    monkeypatch.setattr(TorchBackend, "predict", refuse)
    train(two, is_quiet=True)
    require_equal_runs(one, two)


def test_a_lost_cache_is_made_again_from_the_network_as_it_was(root: Path) -> None:
    """A resumed run has other weights; its reference is still the network at the start."""
    import shutil

    pairs_world(root)
    one, two = (run_config(root, DPO, output_dir=root / name) for name in ("one", "two"))
    train(one, is_quiet=True)
    stop_after_checkpoints(two, 2)
    shutil.rmtree(root / "cache" / "scores")
    train(two, is_quiet=True)
    require_equal_runs(one, two)


def test_ranks_compute_their_shares_and_know_all(tmp_path: Path) -> None:
    network_folder(tmp_path / "network")
    examples = [example(number) for number in range(9)]
    wanted = lab_scores(tmp_path / "network", examples)

    def work(make: BackendFactory) -> tuple[list[list[float]], int]:
        backend = make(lab_network(tmp_path / "network"), run_config(tmp_path).train)
        cache = ScoreCache(tmp_path / f"cache-{backend.rank}")
        found = FrozenScores("reference", cache, backend.predict, backend, PADDED)(examples)
        assert isinstance(backend, ThreadBackend)
        return [np.concatenate(each.frozen["reference"]).tolist() for each in found], backend.num_passes

    results = on_ranks(3, work)
    assert all(scores == results[0][0] for scores, _ in results)
    assert len({num_passes for _, num_passes in results}) == 1
    for mine, theirs in zip(results[0][0], wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_recorded_log_probs_of_the_pair_are_used_and_no_network_is_loaded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(origins, "load_by", lambda *arguments, **options: loaded.append("loaded"))
    config = run_config(root, {"objective": {"name": "wspo", "parameters": {"gamma": 0.5}}})
    outcome = train(config, is_quiet=True)
    assert outcome.is_finished
    assert "target_size" in outcome.metrics
    assert not loaded


def test_what_no_record_holds_is_asked_of_the_configured_pair(root: Path) -> None:
    write_samples(root / "plain", (sample(number, is_plain=True) for number in range(12)))
    stream = {"location": str(root / "plain"), "read": {"shuffle_rows": 0}}
    settings = {"objective": {"name": "wspo"}}
    with pytest.raises(ConfigError, match=r"models\.aligned\.source"):
        train(run_config(root, settings, stream=stream), is_quiet=True)
    network_folder(root / "aligned", seed=1)
    models = {"aligned": {"source": str(root / "aligned")}, "base": {"source": str(root / "network")}}
    outcome = train(run_config(root, settings, stream=stream, models={**models, "dtype": "float32"}), is_quiet=True)
    examples = [
        LabExample(sample(number).prompt_token_ids, (sample(number, is_plain=True).completion_token_ids,))
        for number in range(12)
    ]
    aligned, base = (
        torch.cat(response_logprobs(lab_network(root / name), examples, "float32")) for name in ("aligned", "network")
    )
    sizes = [line["target_size"] for line in _lines(root / "run" / "metrics.jsonl") if "target_size" in line]
    lengths = [sum(len(e.responses[0]) for e in examples[start : start + 6]) for start in (0, 6)]
    mean = sum(size * length for size, length in zip(sizes, lengths, strict=True)) / sum(lengths)
    assert outcome.is_finished
    assert mean == pytest.approx((aligned - base).abs().mean().item(), abs=1e-5)


def _lines(path: Path) -> list[dict[str, Any]]:
    from cong.train.metrics import read_metrics

    return list(read_metrics(path))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_growing_stream_asks_a_reference_of_its_own(tmp_path: Path, precision: str) -> None:
    """By then the network in training is no longer what it was: both ways must give the same run."""
    network_folder(tmp_path / "network")
    write_samples(tmp_path / "stream", (sample(number) for number in range(24)), "w")
    settings = {"objective": {"name": "wspo", "parameters": {"gamma": 0.5}}, "precision": precision}
    still = run_config(
        tmp_path,
        settings,
        output_dir=tmp_path / "still",
        stream={"location": str(tmp_path / "stream"), "read": {"shuffle_rows": 0}},
    )
    follow = {"follow": {"poll_s": 0.01, "idle_timeout_s": 60.0}, "max_records": 24, "shuffle_rows": 0}
    growing = run_config(
        tmp_path,
        settings,
        output_dir=tmp_path / "growing",
        cache_dir=tmp_path / "cache-2",
        stream={"location": str(tmp_path / "stream"), "read": follow},
    )
    train(still, is_quiet=True)
    train(growing, is_quiet=True)
    require_equal_runs(still, growing)
