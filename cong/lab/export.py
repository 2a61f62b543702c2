"""The world's files, as a user would have them: two networks, prompts, preferences, held-out prompts, ideal answers.

What is written is what the lab's own stages use, so other programs can be measured on the same world.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from cong.config.lab import LabConfig
from cong.errors import ConfigError
from cong.files import json_bytes, remove_folder, write_file
from cong.lab.bases import get_base
from cong.lab.cache import Cache
from cong.lab.networks import save_network
from cong.lab.stages import held_out_prompts, training_prompts
from cong.lab.world import draw_pair, generator, ideal_response

MARK = "world.json"
"""Says that a folder was written here, and may be written again."""
NETWORKS = {"weak model before its alignment": "weak-base", "strong model": "strong-base"}
TEXTS = {
    "preferences": "preferences.jsonl",
    "prompts": "prompts.jsonl",
    "ideal answers to them": "gold-answers.jsonl",
    "held-out prompts": "held-out.jsonl",
}


def export_world(config: LabConfig, cache: Cache, folder: Path) -> dict[str, Path]:
    """Write the world of a seed; returns what lies where.

    Raises:
        ConfigError: The folder holds what no export wrote, under a name that this one needs; or it cannot be written.
    """
    begin(config, folder)
    networks = {what: folder / name for what, name in NETWORKS.items()}
    weak, strong = networks.values()
    try:
        for path in (weak, strong):
            remove_folder(path)
        save_network(get_base(config, "weak", cache), weak)
        save_network(get_base(config, "strong", cache), strong)
    except SafetensorError as error:
        raise ConfigError(f"{folder} cannot be written: {error}; make room, or give another place") from error
    return {**networks, **export_texts(config, folder)}


def begin(config: LabConfig, folder: Path) -> None:
    """Take a folder, unless it holds what somebody else put there."""
    mark = folder / MARK
    others = [name for name in (*NETWORKS.values(), *TEXTS.values()) if (folder / name).exists()]
    if others and not mark.exists():
        raise ConfigError(
            f"{folder} holds {', '.join(others)}, and no {MARK} says that an export wrote them; give another folder, "
            "or move them away"
        )
    write_file(mark, json_bytes({"written_by": "cong lab export", "seed": config.seed}))


def export_texts(config: LabConfig, folder: Path) -> dict[str, Path]:
    """Write everything of the world but its networks."""
    files = {what: folder / name for what, name in TEXTS.items()}
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


def _write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
