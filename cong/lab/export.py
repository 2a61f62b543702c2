"""The world's files, as a user would have them: two networks, prompts, preferences, held-out prompts, ideal answers.

What is written is what the lab's own stages use, so other programs can be measured on the same world.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from cong.config.lab import LabConfig
from cong.errors import ConfigError
from cong.files import write_file
from cong.lab.bases import get_base
from cong.lab.cache import Cache
from cong.lab.networks import save_network
from cong.lab.stages import held_out_prompts, training_prompts
from cong.lab.world import draw_pair, generator, ideal_response


def export_world(config: LabConfig, cache: Cache, folder: Path) -> dict[str, Path]:
    """Write the world of a seed; returns what lies where."""
    weak, strong = folder / "weak-base", folder / "strong-base"
    try:
        save_network(get_base(config, "weak", cache), _fresh(weak))
        save_network(get_base(config, "strong", cache), _fresh(strong))
    except SafetensorError as error:
        raise ConfigError(f"{folder} cannot be written: {error}; make room, or give another place") from error
    return {"weak model before its alignment": weak, "strong model": strong, **export_texts(config, folder)}


def export_texts(config: LabConfig, folder: Path) -> dict[str, Path]:
    """Write everything of the world but its networks."""
    files = {
        "preferences": folder / "preferences.jsonl",
        "prompts": folder / "prompts.jsonl",
        "ideal answers to them": folder / "gold-answers.jsonl",
        "held-out prompts": folder / "held-out.jsonl",
    }
    preferences, prompts, answers, held_out = files.values()
    rng = generator("preference pairs", config.seed)
    settings = config.alignment
    pairs = (draw_pair(rng, settings.preference_noise) for _ in range(settings.num_pairs))
    _write(preferences, ({"prompt": one.prompt, "chosen": one.chosen, "rejected": one.rejected} for one in pairs))
    asked = training_prompts(config)
    _write(prompts, ({"prompt_id": one[:-1], "prompt": one} for one in asked))
    _write(answers, ({"prompt_id": one[:-1], "prompt": one, "answer": ideal_response(one)} for one in asked))
    _write(held_out, ({"prompt_id": one[:-1], "prompt": one} for one in held_out_prompts(config)))
    return files


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
