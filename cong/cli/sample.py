"""`cong sample`: samples of a file of prompts on this machine, without Ray; run again it makes what is missing."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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
    if arguments.num_samples < 1:
        raise ConfigError(f"--num-samples is {arguments.num_samples}; give at least 1")
    prompts = list(read_prompts(arguments.prompts))
    if not prompts:
        raise ConfigError(f"{arguments.prompts} holds no prompts")
    engine = Engine(load_networks(config.models), config.engine)
    requests = [
        SampleRequest(prompt=prompt, parameters=config.sampling, num_samples=arguments.num_samples)
        for prompt in prompts
    ]
    keys = {key for request in requests for key in engine.keys(request)}
    num_written = 0
    with _open_sink(config, arguments) as sink, progress("sampling", unit="samples") as bar:
        known = sink.known(keys)
        bar.show(missing=len(keys - known))
        for record in engine.generate(requests, known):
            sink.write(record)
            num_written += 1
            bar.advance(tokens=engine.stats().num_drawn_tokens)
    print(f"{sink.name}: {num_written} samples written, {len(known)} were there", file=sys.stderr)
    return 0


class _Sink(Protocol):
    """Where samples go, and which are there."""

    name: str

    def known(self, keys: set[str]) -> set[str]: ...

    def write(self, record: "SampleRecord") -> None: ...


class _Lines:
    """A file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._finished = _finished_keys(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def known(self, keys: set[str]) -> set[str]:
        return keys & self._finished

    def write(self, record: "SampleRecord") -> None:
        self._file.write(record.model_dump_json() + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Stream:
    """A sample stream; samples are durable within the seconds of `stream.write.max_age_s`, and all at the end."""

    def __init__(self, location: str, config: RunConfig, writer_id: str) -> None:
        from cong.stream import StreamWriter, open_store

        stream = config.stream
        self.name = location
        store = open_store(location, stream.storage_options, is_shared=stream.is_shared)
        self._writer = StreamWriter(store, stream.write, writer_id=writer_id, cache_dir=stream.cache_dir)

    def known(self, keys: set[str]) -> set[str]:
        return keys - set(self._writer.missing(sorted(keys)))

    def write(self, record: "SampleRecord") -> None:
        self._writer.append(record)

    def close(self) -> None:
        self._writer.close()


@contextmanager
def _open_sink(config: RunConfig, arguments: argparse.Namespace) -> Iterator[_Sink]:
    sink = _Lines(arguments.out) if arguments.out else _Stream(arguments.stream, config, arguments.writer)
    try:
        yield sink
    finally:
        sink.close()


def _sample(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    return print_config(config) if arguments.dry_run else _write_samples(config, arguments)


def add_sample_command(commands: "Commands") -> None:
    """Declare `cong sample`."""
    parser = commands.add_parser("sample", help="draw samples for a file of prompts, on this machine")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="JSON lines, or a text per line")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="FILE", help="JSON lines; what is there is kept")
    target.add_argument(
        "--stream", metavar="DIR", help="a sample stream: a folder, or a URL such as s3://bucket/prefix"
    )
    parser.add_argument("--writer", default="cong-sample", metavar="ID", help="who writes to the stream: one at a time")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="samples of every prompt")
    add_config_options(parser)
    parser.set_defaults(run=_sample)
