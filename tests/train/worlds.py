"""Tiny networks, streams of samples that they can read, and run configurations over both."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cong.config import RunConfig
from cong.config.stream import WriteSettings
from cong.lab.networks import build_network, prompt_ids, response_ids, save_network
from cong.lab.records import CONTRASTIVE, PAIR, PLAIN
from cong.lab.world import draw_prompts, generator, ideal_response
from cong.schemas import NetworkIdentity, Prompt, SampleRecord, content_key
from cong.stream import StreamReader, StreamWriter, open_store

SMALL = WriteSettings(rows_per_segment=8, rows_per_group=4, max_age_s=600.0, acknowledge_s=0.0, timeout_s=20.0)

PROMPTS = draw_prompts(generator("training prompts", 0), 200)


def network_folder(folder: Path, seed: int = 0) -> Path:
    """A Llama of two layers with the lab's tokenizer, in float32."""
    if not folder.exists():
        save_network(build_network(32, 2, 2, 64, torch.Generator().manual_seed(seed)), folder)
    return folder


def sample(
    number: int, *, is_plain: bool = False, sample_index: int = 0, suffix: str = "", finish_reason: str = "stop"
) -> SampleRecord:
    """An answer to a prompt of the lab, of a length of its own; plain ones are the strong model's, a little shorter."""
    prompt = PROMPTS[number]
    text = ideal_response(prompt) + ";" * (5 * number % 12)
    text = text[: max(1, len(text) - 1 - number % 3)] if is_plain else text
    ids = response_ids(text + suffix)
    rng = np.random.default_rng([number, is_plain])

    def logprobs() -> tuple[float, ...]:
        return tuple((-rng.exponential(1.0, len(ids))).astype(np.float32).tolist())

    return SampleRecord.model_validate(
        {
            "key": "s-" + content_key([number, is_plain, sample_index, suffix]),
            "kind": "plain" if is_plain else "contrastive",
            "prompt": Prompt(text=prompt, prompt_id=f"p-{number}"),
            "prompt_token_ids": prompt_ids(prompt),
            "completion_text": text + suffix,
            "completion_token_ids": ids,
            "logprobs": {"strong": logprobs()} if is_plain else {"aligned": logprobs(), "base": logprobs()},
            "mixture_logprobs": logprobs(),
            "head_sizes": (1,) * len(ids),
            "finish_reason": finish_reason,
            "parameters": PLAIN if is_plain else CONTRASTIVE,
            "sample_index": sample_index,
            "networks": (NetworkIdentity(role="strong", name="s", fingerprint="f"),) if is_plain else PAIR,
            "tokenizer_fingerprint": "t",
        }
    )


def write_samples(
    location: Path, records: Iterable[SampleRecord], writer_id: str = "w", *, is_closed: bool = True
) -> None:
    """Append records to a stream, durable on return."""
    writer = StreamWriter(open_store(str(location)), SMALL, writer_id)
    writer.append_many(records)
    writer.flush()
    if is_closed:
        writer.close()
    else:
        writer.abandon()


@contextmanager
def sampled_meanwhile(location: Path, total: int, num_at_once: int) -> Iterator[None]:
    """Samples 1 to `total` - 1 come into a stream while something else goes on, every few of them in another lane."""

    def sampler() -> None:
        for number in range(1, total, num_at_once):
            records = [sample(each) for each in range(number, min(total, number + num_at_once))]
            write_samples(location, records, f"live{number:02d}")
            time.sleep(0.02)

    thread = threading.Thread(target=sampler)
    thread.start()
    try:
        yield
    finally:
        thread.join(timeout=30)


def stream_keys(location: Path) -> list[str]:
    """Every key of a stream."""
    reader = StreamReader(open_store(str(location)))
    return [key for table, _ in reader.tables(64, ["key"]) for key in table.column("key").to_pylist()]


def run_config(root: Path, train: Mapping[str, Any] | None = None, **sections: Any) -> RunConfig:
    """A run over `root/stream` with the network of `root/network`; small batches, no trackers."""
    content: dict[str, Any] = {
        "output_dir": root / "run",
        "cache_dir": root / "cache",
        "models": {"dtype": "float32"},
        "stream": {"location": str(root / "stream"), "read": {"shuffle_rows": 16, "shuffle_seed": 3}},
        "train": {
            "network": {"source": str(root / "network")},
            "batches": {"batch_size": 6, "max_tokens_per_micro_batch": 120, "max_example_tokens": 64},
            "optimizer": {"learning_rate": 3e-3},
            "precision": "float32",
            "checkpoints": {"every_steps": 2, "every_s": 0},
            "logging": {"has_tensorboard": False, "has_plots": False, "peak_teraflops": 0.01},
        },
    }
    return RunConfig.model_validate(_over(content, {**sections, "train": dict(train or {})}))


def _over(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def final_weights(config: RunConfig) -> dict[str, torch.Tensor]:
    """The exported weights of a finished run."""
    from safetensors.torch import load_file

    return load_file(config.output_dir / "model" / "model.safetensors")
