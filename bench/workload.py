"""The pair and the work that every engine in a benchmark gets: random weights, random prompts, fixed lengths."""

import json
import os
import platform
import re
import statistics
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers.models import WordLevel

VOCAB = 4096
PACED_STEP_S = 0.05
"""A step of an engine of even pace, however many sequences are in it."""


@dataclass(frozen=True)
class Shape:
    """Of a network of 4 heads and 4,096 words."""

    num_layers: int = 6
    width: int = 256

    @property
    def inner_width(self) -> int:
        """Of a layer's feed-forward part."""
        return self.width * 43 // 16

    @property
    def products(self) -> list[tuple[int, int]]:
        """The matrices that a token meets, all layers' and the words'."""
        layer = [(self.width, self.width)] * 4 + [(self.width, self.inner_width)] * 2 + [(self.inner_width, self.width)]
        return layer * self.num_layers + [(self.width, VOCAB)]


@dataclass(frozen=True)
class Work:
    """So many sequences of so many prompt tokens, each continued by so many tokens."""

    num_sequences: int
    num_prompt_tokens: int
    num_new_tokens: int

    @property
    def num_drawn(self) -> int:
        """Tokens that are drawn in all."""
        return self.num_sequences * self.num_new_tokens

    def prompts(self, seed: int = 0) -> list[list[int]]:
        """Random prompts without a common beginning."""
        generator = torch.Generator().manual_seed(seed)
        ids: list[list[int]] = torch.randint(
            3, VOCAB, (self.num_sequences, self.num_prompt_tokens), generator=generator
        ).tolist()
        return ids


def make_network(folder: Path, seed: int, shape: Shape) -> Path:
    """A random Llama of 4 heads and 4,096 words, with a tokenizer."""
    if (folder / "model.safetensors").exists():
        return folder
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=shape.width,
        intermediate_size=shape.inner_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(seed)
    model: Any = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCAB)}
    core = tokenizers.Tokenizer(WordLevel(words, unk_token="w2"))
    wrapped: Any = transformers.PreTrainedTokenizerFast
    wrapped(tokenizer_object=core, bos_token="w0", eos_token="w1", pad_token="w2", unk_token="w2").save_pretrained(
        folder
    )
    return folder


def make_pair(root: Path, shape: Shape = Shape()) -> tuple[Path, Path]:
    """The two networks of the benchmark, made once."""
    home = root if shape == Shape() else root / f"{shape.num_layers}x{shape.width}"
    return make_network(home / "aligned", 0, shape), make_network(home / "base", 1, shape)


def summary(values: list[float]) -> dict[str, float]:
    """Median and spread of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def conditions() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    """Its name, and what tells generations of one name apart."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    known = [f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts]
    return ", ".join([facts.get("model name", platform.processor()), *known])


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Store a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, default=asdict) + "\n")
