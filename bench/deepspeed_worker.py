"""One rank of our loop with DeepSpeed: started by bench/train.py, prints its steps and its memory as JSON.

A rank reads its place from a launcher's variables. Memory is counted over the storages of all tensors that live between
two steps: parameters and optimiser state, and whatever DeepSpeed keeps beside them. Gradients are gone then, but for
those of stage 3.
"""

import argparse
import gc
import json
import logging
import os
import tempfile
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from trainers import Timing, Trainer, Work, small_network, small_work, train_with

from cong.config.train import DeepSpeedSettings, OptimizerSettings, TrainConfig
from cong.train.deepspeed_backend import DeepSpeedBackend
from cong.train.zero_memory import model_memory


def living_bytes() -> int:
    """Bytes of the storages of all tensors of this process, each once."""
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--whole-bucket", action="store_true", help="stage 3: a bucket for all gradients at once")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(arguments.stage, Path(folder), has_whole_bucket=arguments.whole_bucket)
        measure(settings, arguments.seconds)


def settings_of(stage: int, folder: Path, *, has_whole_bucket: bool) -> TrainConfig:
    """ZeRO of a stage; stage 3 is asked to keep no gathered parameters, up to a billion of which it keeps otherwise."""
    file = None
    if stage == 3:
        file = folder / "deepspeed.json"
        kept = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
        if has_whole_bucket:
            kept["reduce_bucket_size"] = num_parameters()
        file.write_text(json.dumps({"zero_optimization": kept}))
    return TrainConfig(
        backend="deepspeed",
        precision="float32",
        optimizer=OptimizerSettings(learning_rate=1e-5),
        deepspeed=DeepSpeedSettings(zero_stage=stage, timeout_s=120.0, config_file=file),  # type: ignore[arg-type]
    )


def num_parameters() -> int:
    """Of the network that is trained."""
    return sum(weight.numel() for weight in small_network().parameters())


def measure(settings: TrainConfig, seconds: float) -> None:
    """Train for so long, then count."""
    work: Work = small_work(1)
    model = small_network()
    num_trained = num_parameters()
    before = living_bytes() - 4 * num_trained
    backend = DeepSpeedBackend(model, settings)
    train: Trainer = train_with(backend, model, work)
    timing: Timing = train(seconds)
    held = living_bytes() - before
    foretold = model_memory(settings, num_trained, 0, backend.world_size)
    said = {
        "steps": timing.counted,
        "held_bytes": held,
        "foretold_bytes": {
            "parameters": foretold.parameters,
            "gradients": foretold.gradients,
            "optimizer": foretold.optimizer,
            "bucket": foretold.bucket,
        },
    }
    if backend.rank == 0:
        print(json.dumps(said), flush=True)
    backend.close()


if __name__ == "__main__":
    main()
