"""What one rank does in the tests: scenarios by name, whose results it leaves as files for the test to judge."""

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cong.config import RunConfig, load_config
from cong.config.train import TrainConfig
from cong.errors import CheckpointError, ConfigError
from cong.files import write_file
from cong.models.attention import register_attention
from cong.train.data.packing import ATTENTION_NAME, attend_packed
from cong.train.deepspeed_backend import DeepSpeedBackend
from cong.train.run import train as train_run
from cong.train.stopping import StopRequest
from tests.train.deepspeed.worlds import (
    Trained,
    adapted_network,
    batches_of,
    measured_bytes,
    settings,
    steps,
    tiny_network,
    train,
)

SETTINGS: dict[str, TrainConfig] = {
    **{f"zero{stage}": settings(stage) for stage in range(4)},
    **{f"zero{stage}-bfloat16": settings(stage, "bfloat16") for stage in range(4)},
    **{f"zero{stage}-lora": settings(stage) for stage in range(4)},
    "zero1-offload": settings(1, offload_optimizer=True),
    "zero2-offload": settings(2, offload_optimizer=True),
    "zero3-offload": settings(3, offload_optimizer=True, offload_parameters=True),
    **{f"zero{stage}-{kind}": settings(stage) for stage in (2, 3) for kind in ("untied", "packed", "checkpointed")},
}
RESUMED = [*(f"zero{stage}" for stage in range(4)), *(f"zero{stage}-bfloat16" for stage in range(4))]
RESUMED += ["zero2-lora", "zero3-lora", "zero3-offload"]
RESIZED = ["zero0", "zero1", "zero2", "zero3", "zero1-bfloat16", "zero2-lora"]


def backend_for(name: str) -> DeepSpeedBackend:
    """A backend over a fresh network."""
    network: Any = adapted_network() if name.endswith("lora") else tiny_network(is_tied=not name.endswith("untied"))
    if name.endswith("packed"):
        register_attention(ATTENTION_NAME, attend_packed)
        network.set_attn_implementation(ATTENTION_NAME)
    if name.endswith("checkpointed"):
        network.gradient_checkpointing_enable({"use_reentrant": False})
    return DeepSpeedBackend(network, SETTINGS[name])


def leave(folder: Path, name: str, backend: DeepSpeedBackend, done: Trained) -> None:
    torch.save(asdict(done), folder / f"{name}.rank{backend.rank}of{backend.world_size}")


def train_all(folder: Path) -> None:
    """Every setting once, from the first step to the last."""
    for name in SETTINGS:
        started = time.perf_counter()
        done = Trained()
        backend = backend_for(name)
        train(backend, is_packed=name.endswith("packed"), done=done)
        done.num_bytes = measured_bytes(backend)
        leave(folder, name, backend, done)
        backend.close()
        print(f"{name}: {time.perf_counter() - started:.1f} s")


def resume_all(folder: Path) -> None:
    """Save after two steps, and go on both with the backend that saved and with a new one that loads."""
    for name in RESUMED:
        saved = folder / "saved" / name
        unbroken, resumed = Trained(), Trained()
        backend = backend_for(name)
        train(backend, 0, 2, done=Trained())
        backend.save(saved)
        train(backend, 2, done=unbroken)
        backend.close()
        again = backend_for(name)
        again.predict(batches_of(steps()[0], again.rank, again.world_size)[0])
        again.load(saved)
        train(again, 2, done=resumed)
        leave(folder, f"{name}.unbroken", again, unbroken)
        leave(folder, f"{name}.resumed", again, resumed)
        again.close()


def load_and_go_on(folder: Path, source: str, target: str, first: int) -> None:
    """Load what some other number of ranks has saved, save it at once, and go on to the end."""
    for name in RESIZED:
        loaded, stepped = Trained(), Trained()
        backend = backend_for(name)
        backend.load(folder / source / name)
        loaded.weights = dict(backend.weights())
        backend.save(folder / target / name)
        train(backend, first, done=stepped)
        leave(folder, f"{name}.loaded", backend, loaded)
        leave(folder, f"{name}.stepped", backend, stepped)
        backend.close()


def refuse_torn(folder: Path) -> None:
    """Every damage to a folder is an error on every rank, at once."""
    backend = backend_for("zero2")
    for damage in sorted((folder / "torn").iterdir()):
        try:
            backend.load(damage)
            message = "loaded"
        except CheckpointError as error:
            message = str(error)
        (folder / f"{damage.name}.message{backend.rank}").write_text(message)
    backend.close()


def meet_trouble(folder: Path) -> None:
    """Gradients that are not finite, and texts and sums over ranks."""
    found: dict[str, object] = {}
    for stage in range(4):
        backend = backend_for(f"zero{stage}")
        before = dict(backend.weights())
        batch = batches_of(steps()[0], backend.rank, backend.world_size)[0]
        backend.backward(backend.logits(batch).sum() * (float("inf") if backend.rank == 1 else 1.0), is_last=True)
        norm = backend.step(1e-3)
        after = dict(backend.weights())
        found[f"zero{stage}"] = (math.isfinite(norm), all(torch.equal(after[name], before[name]) for name in before))
        backend.close()
    backend = DeepSpeedBackend(tiny_network(), settings(2))
    texts = ("", "first \u2713", "x" * 100_000)
    found["texts"] = [backend.from_first(text if backend.rank == 0 else "other") == text for text in texts]
    found["total"] = backend.total(torch.tensor([1.5, backend.rank], dtype=torch.float64)).tolist()
    found["averaged"] = [backend.num_averaged(number) for number in (1, 3)]
    (folder / f"trouble{backend.rank}").write_text(json.dumps(found))
    backend.close()


def wait_in_vain(folder: Path) -> None:
    """One rank stops coming while the other waits for it."""
    train_settings = settings(2)
    limited = train_settings.deepspeed.model_copy(update={"timeout_s": 8.0})
    # One rank may take longer than the other to import it.
    importlib.import_module("deepspeed")
    dist.barrier()
    backend = DeepSpeedBackend(tiny_network(), train_settings.model_copy(update={"deepspeed": limited}))
    waited = folder / "waited"
    if backend.rank == 1:
        while not waited.exists():
            time.sleep(0.1)
        return
    batch = batches_of(steps()[0], 0, 2)[0]
    try:
        backend.backward(backend.logits(batch).sum(), is_last=True)
        backend.step(1e-3)
        message = "went on"
    except RuntimeError as error:
        message = str(error)
    write_file(waited, message.encode())


def be_alone(folder: Path) -> None:
    """Without a launcher: two backends after one another, each its own whole world."""
    for number in range(2):
        done = Trained()
        backend = DeepSpeedBackend(tiny_network(), settings(2 + number))
        train(backend, done=done)
        leave(folder, f"alone{number}", backend, done)
        backend.close()
        assert not dist.is_initialized()
    frozen = tiny_network().requires_grad_(False)
    for network, variables in ((frozen, {}), (tiny_network(), {"RANK": "0"}), (tiny_network(), {"WORLD_SIZE": "x"})):
        os.environ.update({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"} if variables else {})
        os.environ.update(variables)
        try:
            DeepSpeedBackend(network, settings(2))
        except ConfigError as error:
            print(f"refused: {error}")


def compute_adam_by_extension(folder: Path) -> None:
    """DeepSpeed's own Adam for an offloaded optimiser, compiled if it is not there."""
    started = time.monotonic()
    try:
        backend = DeepSpeedBackend(tiny_network(), settings(2, offload_optimizer=True, has_compiled_adam=True))
    except ConfigError as error:
        print(f"refused after {time.monotonic() - started:.0f} s: {error}")
        return
    done = Trained()
    train(backend, done=done)
    leave(folder, "compiled", backend, done)
    backend.close()


def run_whole(folder: Path, names: Sequence[str]) -> None:
    """Whole training runs by their configurations; `stop:` before a name ends it after the first checkpoint."""
    for name in names:
        config = load_config(RunConfig, [folder / f"{name.removeprefix('stop:')}.yaml"])
        stop = StopRequest()

        def report(metrics: Mapping[str, float], saved: Path, stop: StopRequest = stop, name: str = name) -> None:
            if name.startswith("stop:"):
                stop.set()

        train_run(config, DeepSpeedBackend, report=report, stop=stop, is_quiet=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    scenario, results, *rest = sys.argv[1:]
    if scenario != "alone":
        # As a launcher would: many backends follow one another in one group.
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    match scenario:
        case "train":
            train_all(Path(results))
        case "resume":
            resume_all(Path(results))
        case "resize":
            load_and_go_on(Path(results), rest[0], rest[1], int(rest[2]))
        case "torn":
            refuse_torn(Path(results))
        case "trouble":
            meet_trouble(Path(results))
        case "vain":
            wait_in_vain(Path(results))
        case "alone":
            be_alone(Path(results))
        case "run":
            run_whole(Path(results), rest)
        case "compiled":
            compute_adam_by_extension(Path(results))
    if dist.is_initialized():
        dist.destroy_process_group()
    # All is done and told; a library's thread that comes back to an interpreter that is gone would abort the process.
    sys.stdout.flush()
    os._exit(0)
