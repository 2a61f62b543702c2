"""`cong sample`: samples of a file of prompts on this machine, without Ray; run again it makes what is missing."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cong.cli.config import add_config_options, print_config, resolve_config
from cong.config import RunConfig
from cong.errors import ConfigError

if TYPE_CHECKING:
    from cong.schemas import SampleRecord

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _finished_keys(path: Path) -> set[str]:
    """Keys of the samples that a file already holds; a torn last line is cut off."""
    if not path.exists():
        return set()
    keys, good_bytes = set(), 0
    with path.open("rb") as file:
        for line in file:
            try:
                keys.add(str(json.loads(line)["key"]))
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            good_bytes += len(line)
        rest = file.read()
    if rest.strip():
        raise ConfigError(f"{path} holds something else than samples after byte {good_bytes}; give another --out")
    with path.open("r+b") as file:
        file.truncate(good_bytes)
    return keys


def _write_samples(config: RunConfig, arguments: argparse.Namespace) -> int:
    import torch

    from cong.engine import Engine
    from cong.models import load_networks
    from cong.prompts import read_prompts
    from cong.schemas import SampleRequest
    from cong.telemetry import progress

    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    prompts = list(read_prompts(arguments.prompts))
    if not prompts:
        raise ConfigError(f"{arguments.prompts} holds no prompts")
    engine = Engine(load_networks(config.models), config.engine)
    requests = [
        SampleRequest(prompt=prompt, parameters=config.sampling, num_samples=arguments.num_samples)
        for prompt in prompts
    ]
    known = _finished_keys(arguments.out)
    total = sum(len(engine.missing(request, known)) for request in requests)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    num_written = 0
    with arguments.out.open("a", encoding="utf-8") as file, progress("sampling", total, unit="samples") as bar:
        for record in engine.generate(requests, known):
            file.write(_line(record))
            file.flush()
            num_written += 1
            bar.advance(tokens=engine.stats().num_drawn_tokens)
    print(f"{arguments.out}: {num_written} samples written, {len(known)} were there", file=sys.stderr)
    return 0


def _line(record: "SampleRecord") -> str:
    return record.model_dump_json() + "\n"


def _sample(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    return print_config(config) if arguments.dry_run else _write_samples(config, arguments)


def add_sample_command(commands: "Commands") -> None:
    """Declare `cong sample`."""
    parser = commands.add_parser("sample", help="draw samples for a file of prompts, on this machine")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="JSON lines, or a text per line")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines; what is there is kept")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="samples of every prompt")
    add_config_options(parser)
    parser.set_defaults(run=_sample)
