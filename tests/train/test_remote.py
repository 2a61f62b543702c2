"""Checkpoints on an object store: complete or not there, and a machine without a disk of its own goes on from them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cong.errors import CheckpointError
from cong.train.remote import RemoteCheckpoints
from cong.train.run import train
from tests.train.runs import require_equal_runs, stop_after_checkpoints
from tests.train.worlds import run_config

KEYS = {"key": "testing", "secret": "testing"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def store(server: str) -> dict[str, Any]:
    """An empty bucket, and how it is reached."""
    client = boto3.client(
        "s3", endpoint_url=server, aws_access_key_id="testing", aws_secret_access_key="testing", region_name="us-east-1"
    )
    client.create_bucket(Bucket="checkpoints")
    for item in client.list_objects_v2(Bucket="checkpoints").get("Contents", []):
        client.delete_object(Bucket="checkpoints", Key=item["Key"])
    return {"upload": "s3://checkpoints/run", "storage_options": {**KEYS, "endpoint_url": server}}


@pytest.fixture(params=["bucket", "folder"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Either kind of store, empty, and how it is reached."""
    if request.param == "bucket":
        bucket: dict[str, Any] = request.getfixturevalue("store")
        return bucket
    return {"upload": str(tmp_path / "shared" / "run"), "storage_options": {}}


def test_another_machine_goes_on_from_the_store(root: Path, kept: dict[str, Any]) -> None:
    settings = {"checkpoints": {"every_steps": 2, "every_s": 0, **kept}}
    unbroken = run_config(root, output_dir=root / "unbroken")
    broken = run_config(root, settings, output_dir=root / "broken")
    train(unbroken, is_quiet=True)
    stop_after_checkpoints(broken, 2)
    (broken.output_dir / "metrics.jsonl").rename(root / "kept.jsonl")
    shutil.rmtree(broken.output_dir)
    broken.output_dir.mkdir()
    (root / "kept.jsonl").rename(broken.output_dir / "metrics.jsonl")
    train(broken, is_quiet=True)
    require_equal_runs(unbroken, broken)
    assert RemoteCheckpoints(kept["upload"], kept["storage_options"]).steps() == [6, 7]


def test_what_has_no_marker_is_not_there(root: Path, store: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    settings = {"checkpoints": {"every_steps": 2, "every_s": 0, **store}}
    config = run_config(root, settings)
    stop_after_checkpoints(config, 2)
    remote = RemoteCheckpoints(store["upload"], store["storage_options"])
    assert remote.steps() == [4, 5]
    remote._files.rm_file(remote._at("step-00000005.committed"))
    shutil.rmtree(config.output_dir)
    assert train(config, is_quiet=True).is_finished
    assert "step-00000004 is not here; it is fetched from" in caplog.text


def test_another_runs_copies_are_refused_and_not_fetched(root: Path, kept: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"checkpoints": {"every_steps": 2, "every_s": 0, **kept}, "max_steps": 2}
    train(run_config(root, settings), is_quiet=True)
    other = run_config(root, {**settings, "optimizer": {"learning_rate": 1e-3}}, output_dir=root / "other")
    wrong = rf"{kept['upload']}/step-00000002 was made by another recipe:(.|\n)*learning_rate was 0\.003 and is 0\.001"
    with pytest.raises(CheckpointError, match=wrong):
        train(other, is_quiet=True)
    assert not (other.output_dir / "checkpoints").exists()
    moved = {"checkpoints": {**settings["checkpoints"], "upload": f"{kept['upload']}-other"}}
    assert train(run_config(root, {**settings, **moved}, output_dir=root / "other"), is_quiet=True).is_finished


def test_damaged_bytes_on_the_store_are_refused(root: Path, store: dict[str, Any]) -> None:
    config = run_config(root, {"checkpoints": {"every_steps": 2, "every_s": 0, **store}})
    stop_after_checkpoints(config, 2)
    remote = RemoteCheckpoints(store["upload"], store["storage_options"])
    path = remote._at("step-00000005/backend/weights.safetensors")
    content = bytearray(remote._files.cat_file(path))
    content[100] ^= 1
    remote._files.pipe_file(path, bytes(content))
    shutil.rmtree(config.output_dir)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is not what was written"):
        train(config, is_quiet=True)


def test_a_place_that_cannot_be_written_to_is_told_before_the_first_step(root: Path) -> None:
    config = run_config(root, {"checkpoints": {"upload": "/proc/none/run"}})
    with pytest.raises(CheckpointError, match="cannot write to /proc/none/run: FileNotFoundError"):
        train(config, is_quiet=True)
    assert not (config.output_dir / "checkpoints").exists()


def test_a_store_that_cannot_be_reached_is_named(root: Path) -> None:
    options = {**KEYS, "endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 1}}}
    unreachable = {"upload": "s3://nowhere/run", "storage_options": options}
    with pytest.raises(CheckpointError, match="cannot list s3://nowhere/run"):
        train(run_config(root, {"checkpoints": unreachable}), is_quiet=True)
