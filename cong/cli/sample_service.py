"""`cong sample --url`: the same samples from a service instead of from networks on this machine."""

import argparse
import asyncio
import signal
import sys
from collections import defaultdict
from dataclasses import replace

from cong.cli.samples_file import SamplesFile
from cong.client import AsyncClient, Patience
from cong.client.bulk import Bounds, Bulk, GivenUp, Tally
from cong.client.units import Ask, Units, networks_name, unit_name
from cong.config import RunConfig
from cong.errors import ConfigError
from cong.prompts import PromptSource
from cong.telemetry import Progress, progress
from cong.wire import SampleReply

_NUM_SHOWN = 10


def sample_from_service(config: RunConfig, arguments: argparse.Namespace, prompts: PromptSource) -> int:
    """Fill a file, the service's stream, or both; exit code 1 where prompts were given up."""
    if arguments.stream is not None:
        raise ConfigError("--stream writes from this machine; with --url the service keeps its own: give --store")
    if arguments.out is None and arguments.store == "none":
        raise ConfigError("nothing would keep the samples; give --out, or --store local or shared")
    if arguments.in_flight < 1:
        raise ConfigError(f"--in-flight is {arguments.in_flight}; give at least 1")
    sink = SamplesFile(arguments.out) if arguments.out is not None else None
    try:
        return asyncio.run(_run(config, arguments, prompts, sink))
    finally:
        if sink is not None:
            sink.close()


class _Into:
    """The file that replies go into, where there is one; each key is in it once."""

    def __init__(self, sink: SamplesFile | None) -> None:
        self._sink = sink
        self._owners: dict[str, str] = {}
        """Of each key, the id of the prompt under which it is in the file."""
        self._num_written = 0
        self._num_there = 0
        """Replies with nothing new."""
        self._num_shared = 0
        """Prompts whose samples are there under another one's id: their tokens are equal, as only the service knows."""

    def take(self, reply: SampleReply) -> None:
        """Add what is not there."""
        if self._sink is None:
            return
        records = [sample.record for sample in reply.samples]
        new = [record for record in records if record.key not in self._sink.keys]
        for record in new:
            self._sink.write(record)
        self._num_written += len(new)
        self._num_there += not new
        ids = [(self._owners.setdefault(r.key, r.prompt.prompt_id), r.prompt.prompt_id) for r in records]
        self._num_shared += any(owner != own for owner, own in ids)

    def corrected(self, tally: Tally) -> Tally:
        """What became of the prompts, as the file has it."""
        return replace(
            tally,
            num_samples=self._num_written,
            num_done=tally.num_done - self._num_there,
            num_known=tally.num_known + self._num_there,
            num_shared=tally.num_shared + self._num_shared,
        )

    def prompts_there(self, ask: Ask) -> set[str]:
        """Names of the prompts of which the file holds every sample that is wanted."""
        indices: dict[str, set[int]] = defaultdict(set)
        for row in self._sink.rows() if self._sink is not None else ():
            try:
                networks = [(network["role"], network["fingerprint"]) for network in row["networks"]]
                deployment = networks_name(networks, row["tokenizer_fingerprint"])
                unit = unit_name(deployment, row["prompt"], row["parameters"], ask.num_samples, ask.store)
                indices[unit].add(row["sample_index"])
                self._owners[row["key"]] = row["prompt"]["prompt_id"]
            except (KeyError, TypeError):
                continue  # of another version: its prompt is asked for again, and its key is known
        return {unit for unit, found in indices.items() if found >= set(range(ask.num_samples))}


async def _run(
    config: RunConfig, arguments: argparse.Namespace, prompts: PromptSource, sink: SamplesFile | None
) -> int:
    job = config.sampling_job
    async with AsyncClient(arguments.url, patience=Patience(total_s=job.patience_s, max_tries=job.max_tries)) as client:
        await client.wait_ready(job.ready_s)
        info = await client.info()
        if arguments.store not in ("none", *info.store_levels):
            offered = ", ".join(info.store_levels) or "none"
            raise ConfigError(f"--store is {arguments.store}; {client.url} offers: {offered}")
        ask = Ask(config.sampling, arguments.num_samples, arguments.store, job.deadline_s)
        ask.require_offered(info, client.url)
        into = _Into(sink)
        # Of a file nobody can tell what the service keeps; it answers that without making it.
        there = set[str]() if ask.store != "none" else into.prompts_there(ask)
        given_up: list[GivenUp] = []
        total = prompts.count()
        with progress("sampling", total, start=min(len(there), total or 0), unit="prompts") as bar:
            bulk = Bulk(
                client,
                ask,
                Units(info, ask, with_stream=False),
                Bounds(arguments.in_flight, job.max_failures_in_a_row, job.grace_s),
                there,
                take=into.take,
                give_up=given_up.append,
                settled=lambda tally: _show(bar, tally),
            )
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, _stop, bulk)
            tally = await bulk.run(prompts.strict())
    if sink is not None:
        tally = into.corrected(tally)
    _tell(sink.name if sink is not None else client.url, tally, given_up)
    return 1 if tally.num_failed or tally.stopped else 0


def _stop(bulk: Bulk) -> None:
    """The first signal lets what is in flight finish; the next one acts as ever."""
    bulk.stop("interrupted")
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().remove_signal_handler(number)


def _show(bar: Progress, tally: Tally) -> None:
    num_through = tally.num_done + tally.num_failed + tally.num_known
    bar.advance(max(0, num_through - bar.done), tokens=tally.num_tokens, failed=tally.num_failed)


def _tell(name: str, tally: Tally, given_up: list[GivenUp]) -> None:
    print(
        f"{name}: {tally.num_samples} samples of {tally.num_done} prompts, {tally.num_known} were there",
        file=sys.stderr,
    )
    if tally.num_shared:
        print(
            f"prompts with the tokens of another one: {tally.num_shared}; they have its samples, which are kept once, "
            "under the id that came first",
            file=sys.stderr,
        )
    for failure in given_up[:_NUM_SHOWN]:
        print(f"  {failure.prompt.prompt_id}: {failure.error}: {failure.reason}", file=sys.stderr)
    if len(given_up) > _NUM_SHOWN:
        print(f"  and {len(given_up) - _NUM_SHOWN} more", file=sys.stderr)
    if tally.stopped:
        print(f"stopped before the end: {tally.stopped}", file=sys.stderr)
    num_final = sum(failure.is_final for failure in given_up)
    if num_final:
        print(
            f"refused for what they ask, and would be again: {num_final}; change prompts or settings", file=sys.stderr
        )
    if num_final < len(given_up) or tally.stopped:
        print("run it again for what is missing", file=sys.stderr)
