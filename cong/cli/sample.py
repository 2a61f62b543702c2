"""`cong sample`: samples of a file of prompts; run again it makes what is missing.

On this machine, without Ray, or from a service at an address.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cong.cli.config import Commands, add_config_options, print_config, resolve_config
from cong.cli.dry_run import print_sampling_estimate
from cong.cli.samples_file import SamplesFile
from cong.config import RunConfig
from cong.errors import ConfigError

if TYPE_CHECKING:
    from cong.engine import LocalEngine
    from cong.prompts import PromptSource
    from cong.schemas import Prompt, SampleRecord, SampleRequest

_NUM_SHOWN = 5
_MAX_SAMPLES = 4096
"""Of one request: `SampleRequest.num_samples`."""


def _sample_here(config: RunConfig, arguments: argparse.Namespace, source: "PromptSource") -> int:
    import torch

    from cong.engine import open_engine
    from cong.models import require_weights

    if arguments.out is None and not arguments.stream:
        raise ConfigError("nothing would keep the samples; give --out or --stream")
    if arguments.store != "none":
        raise ConfigError("--store asks a service to keep samples; it needs --url")
    require_weights(config.sampling, config.models)
    _require_place(config, arguments)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    prompts = list(source.strict())
    _require_own_ids(prompts, arguments.prompts)
    with closing(open_engine(config.models, config.engine, is_for_good=True)) as engine:
        return _draw(engine, config, arguments, prompts)


def _draw(engine: "LocalEngine", config: RunConfig, arguments: argparse.Namespace, prompts: "Sequence[Prompt]") -> int:
    from cong.schemas import SampleRequest
    from cong.telemetry import progress

    requests = [
        SampleRequest(prompt=prompt, parameters=config.sampling, num_samples=arguments.num_samples)
        for prompt in prompts
    ]
    of_keys: dict[tuple[str, ...], SampleRequest] = {}
    shared: list[tuple[str, str]] = []
    for request in requests:
        _require_room(engine, request)
        first = of_keys.setdefault(engine.keys(request), request)
        if first is not request:
            shared.append((request.prompt.prompt_id, first.prompt.prompt_id))
    keys = {key for of_prompt in of_keys for key in of_prompt}
    num_written = 0
    with _open_sink(config, arguments) as sink:
        known = sink.known(keys)
        with progress("sampling", len(keys), start=len(known), unit="samples") as bar:
            for record in engine.generate(of_keys.values(), known):
                sink.write(record)
                num_written += 1
                bar.advance(tokens=engine.stats().num_drawn_tokens)
    print(f"{sink.name}: {num_written} samples written, {len(known)} were there", file=sys.stderr)
    _tell_shared(shared)
    return 0


def _require_place(config: RunConfig, arguments: argparse.Namespace) -> None:
    """Told before the networks are loaded, which may take minutes."""
    if arguments.out is not None:
        SamplesFile.require_place(arguments.out)
        return
    from cong.stream import open_store, require_place

    stream = config.stream
    store = open_store(arguments.stream, stream.storage_options, is_shared=stream.is_shared)
    require_place(store, stream.write, arguments.writer)


def _require_own_ids(prompts: "Sequence[Prompt]", name: str) -> None:
    """Whoever joins the samples of two prompts by their id later would lose some, or mix them up."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        if first.setdefault(prompt.prompt_id, prompt) != prompt:
            raise ConfigError(
                f"{name}: two prompts have the id {prompt.prompt_id!r}; samples are joined by it, so give each its own"
            )


def _require_room(engine: "LocalEngine", request: "SampleRequest") -> None:
    """Of thousands of prompts, one that can never be answered is told by name and before anything is drawn."""
    num_tokens, asked = len(engine.encode(request.prompt)), request.parameters.max_tokens
    if num_tokens + asked > engine.max_tokens:
        raise ConfigError(
            f"prompt {request.prompt.prompt_id!r} has {num_tokens} tokens, sampling.max_tokens is {asked}, and both "
            f"together may be {engine.max_tokens} here; shorten or leave out the prompt, or lower sampling.max_tokens"
        )


def _tell_shared(shared: Sequence[tuple[str, str]]) -> None:
    """Prompts that were not sampled, because another one asks the same."""
    if not shared:
        return
    named = ", ".join(f"{own!r} those of {first!r}" for own, first in shared[:_NUM_SHOWN] if own != first)
    rest = f": {named}{' and so on' if len(shared) > _NUM_SHOWN else ''}" if named else ""
    print(
        f"prompts with the tokens of one before them: {len(shared)}; they have its samples, which are kept once, under "
        f"the first id{rest}",
        file=sys.stderr,
    )


class _Sink(Protocol):
    """Where samples go, and which are there."""

    name: str

    def known(self, keys: set[str]) -> set[str]: ...

    def write(self, record: "SampleRecord") -> None: ...


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
    sink = SamplesFile(arguments.out) if arguments.out else _Stream(arguments.stream, config, arguments.writer)
    try:
        yield sink
    finally:
        sink.close()


def _sample(arguments: argparse.Namespace) -> int:
    from cong.prompts import prompts_of

    config = resolve_config(arguments)
    if not 1 <= arguments.num_samples <= _MAX_SAMPLES:
        raise ConfigError(f"--num-samples is {arguments.num_samples}; give at least 1 and at most {_MAX_SAMPLES}")
    named = config.sampling_job.prompts.model_copy(update={"source": arguments.prompts})
    if arguments.dry_run:
        job = config.sampling_job.model_copy(update={"prompts": named})
        asked = config.model_copy(update={"sampling_job": job})
        print_sampling_estimate(asked, num_samples=arguments.num_samples, is_served=arguments.url is not None)
        return print_config(config)
    prompts = prompts_of(named)
    if next(prompts.strict(), None) is None:
        raise ConfigError(f"{arguments.prompts} holds no prompts")
    if arguments.url is None:
        return _sample_here(config, arguments, prompts)
    from cong.cli.sample_service import sample_from_service

    return sample_from_service(config, arguments, prompts)


def add_sample_command(commands: Commands) -> None:
    """Declare `cong sample`."""
    parser = commands.add_parser("sample", help="draw samples for a file of prompts, here or from a service")
    parser.add_argument(
        "--prompts", required=True, metavar="FILE", help="JSON lines, Parquet, a text per line, or a dataset"
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--out", type=Path, metavar="FILE", help="JSON lines; what is there is kept")
    target.add_argument(
        "--stream", metavar="DIR", help="a sample stream: a folder, or a URL such as s3://bucket/prefix"
    )
    parser.add_argument("--writer", default="cong-sample", metavar="ID", help="who writes to the stream: one at a time")
    parser.add_argument("--url", metavar="URL", help="ask the service at this address; its key is in CONG_API_KEY")
    parser.add_argument(
        "--store", choices=("none", "local", "shared"), default="none", help="how durable the service keeps samples"
    )
    parser.add_argument("--in-flight", type=int, default=64, metavar="N", help="prompts asked of a service at a time")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="samples of every prompt")
    add_config_options(parser)
    parser.set_defaults(run=_sample)
