"""Prompts to samples in the service's stream: `python -m jobs.sample --config run.yaml`, here or by `ray job submit`.

Killed at any moment and started again it asks only for what is missing. Exit codes: 0 every prompt has its samples,
1 some were given up, 2 wrong settings, 3 stopped before the end; after 1 and 3 run it again.
"""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cong.cli.config import add_config_options, resolve_config
from cong.cli.dry_run import print_sampling_estimate
from cong.cli.parser import Parser
from cong.client import AsyncClient, Patience
from cong.client.bulk import Bounds, Bulk, GivenUp, Tally
from cong.client.ledger import Ledger
from cong.client.units import Ask, Units
from cong.config import RunConfig, dump_config
from cong.errors import ConfigError, CongError, Overloaded, Unavailable, Unreachable
from cong.prompts import BadRow, PromptSource, prompts_of
from cong.schemas import Prompt
from cong.telemetry import Progress, configure_logging, progress, track
from cong.wire import InfoReply
from cong.wording import told_by_the_machine
from jobs import connection
from jobs.planning import placed

EXIT_DONE, EXIT_FAILURES, EXIT_WRONG, EXIT_STOPPED = 0, 1, 2, 3

logger = logging.getLogger("jobs.sample")

_PLAN_WAIT_S = 5.0


class Failures:
    """Prompts without samples, with reasons, one a line; the file is of this run only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = 0
        self._file = path.open("w", encoding="utf-8")

    def give_up(self, failure: GivenUp) -> None:
        """A prompt that the service did not answer as asked."""
        self._write(
            {"error": failure.error, "reason": failure.reason, "prompt": failure.prompt.model_dump(mode="json")}
        )

    def bad_row(self, row: BadRow) -> None:
        """A row that is no prompt."""
        self.num_rows += 1
        self._write({"error": "BadRow", "reason": row.problem, "where": row.where})

    def _write(self, line: dict[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Job:
    """One run of the job."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.settings = config.sampling_job
        self.folder = config.output_dir / "sampling"
        if not self.settings.prompts.source:
            raise ConfigError("sampling_job.prompts.source is empty; name a file, a folder, a URL or a hub id")
        self.prompts = prompts_of(self.settings.prompts)
        self.ask = Ask(config.sampling, self.settings.num_samples, self.settings.store, self.settings.deadline_s)

    def client(self) -> AsyncClient:
        """A connection to the service, as patient as configured."""
        patience = Patience(total_s=self.settings.patience_s, max_tries=self.settings.max_tries)
        return AsyncClient(self.settings.url or None, patience=patience)

    def ledger(self) -> Ledger:
        """What earlier runs have done."""
        return Ledger(self.folder / "progress")

    async def units(self, client: AsyncClient) -> tuple[InfoReply, Units]:
        """What the service is, once it is well, and what that makes of the prompts' names."""
        info = await client.info()
        if self.settings.store not in info.store_levels:
            offered = ", ".join(info.store_levels)
            raise ConfigError(f"sampling_job.store is {self.settings.store!r}; {client.url} offers: {offered}")
        self.ask.require_offered(info, client.url)
        return info, Units(info, self.ask)

    def num_known(self, units: Units, ledger: Ledger) -> int:
        """Prompts that need not be asked for, where finding out costs little."""
        if not len(ledger) or not self.prompts.is_near or self.settings.asks_again:
            return 0
        rows = track(self.prompts, "reading prompts", self.prompts.count(), unit="prompts")
        return sum(isinstance(item, Prompt) and units.of(item) in ledger for item in rows)

    async def run(self) -> int:
        """Ask for everything that is missing."""
        settings = self.settings
        with self.ledger() as ledger:
            (self.folder / "config.yaml").write_text(dump_config(self.config), encoding="utf-8")
            async with self.client() as client:
                await client.wait_ready(settings.ready_s)
                info, units = await self.units(client)
                num_known = self.num_known(units, ledger)
                with (
                    Failures(self.folder / "failures.jsonl") as failures,
                    progress("sampling", self.prompts.count(), start=num_known, unit="prompts") as bar,
                ):
                    bulk = Bulk(
                        client,
                        self.ask,
                        units,
                        Bounds(
                            min(settings.in_flight, info.limits.max_concurrent_per_key),
                            settings.max_failures_in_a_row,
                            settings.grace_s,
                        ),
                        _Asked(ledger) if settings.asks_again else ledger,
                        take=lambda reply: None,  # the service keeps the samples
                        give_up=failures.give_up,
                        settled=lambda tally: _show(bar, tally, failures),
                    )
                    stop_on_signals(bulk, settings.grace_s)
                    tally = await bulk.run(_only_prompts(self.prompts, failures))
        if tally == Tally() and not failures.num_rows:
            raise ConfigError(f"{self.prompts.name} holds no prompts")
        return report(tally, failures)

    async def plan(self) -> int:
        """Say what a run would do, and do nothing."""
        num_prompts = self.prompts.count()
        print(f"service: {self.settings.url or 'the one that CONG_URL names'}")
        print(f"prompts: {'an unknown number' if num_prompts is None else num_prompts} in {self.prompts.name}")
        print(f"samples: {self.ask.num_samples} of each, stored at the level {self.ask.store!r}")
        print(f"parameters: {self.ask.parameters.model_dump_json(exclude_defaults=True)}")
        print(f"folder: {self.folder}")
        print_sampling_estimate(self.config, is_served=True)
        async with self.client() as client:
            try:
                await client.wait_ready(_PLAN_WAIT_S)
                info, units = await self.units(client)
            except (Overloaded, Unavailable, Unreachable) as error:
                print(f"the service does not answer, so what is done is not known: {error}")
                return EXIT_DONE
            print(f"networks: {', '.join(f'{network.role} {network.name}' for network in info.networks)}")
            print(f"stream: {info.stream_location}")
            num_known = 0
            if (self.folder / "progress").exists():
                with self.ledger() as ledger:
                    num_known = self.num_known(units, ledger)
            left = "the rest" if num_prompts is None else num_prompts - num_known
            print(f"done before: {num_known}; to be asked for: {left}")
        return EXIT_DONE


class _Asked:
    """A ledger that is written, and believed only about this run."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._asked: set[str] = set()

    def __contains__(self, unit: str) -> bool:
        return unit in self._asked

    def add(self, unit: str) -> None:
        self._asked.add(unit)
        self._ledger.add(unit)


def _only_prompts(source: PromptSource, failures: Failures) -> Iterator[Prompt]:
    for item in source:
        if isinstance(item, BadRow):
            failures.bad_row(item)
        else:
            yield item


def _show(bar: Progress, tally: Tally, failures: Failures) -> None:
    num_failed = tally.num_failed + failures.num_rows
    num_through = tally.num_done + tally.num_known + num_failed
    bar.advance(max(0, num_through - bar.done), tokens=tally.num_tokens, failed=num_failed)


def stop_on_signals(bulk: Bulk, grace_s: float) -> None:
    """The first SIGTERM or SIGINT lets what is in flight finish; the second acts as ever."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop(number: signal.Signals) -> None:
        for each in numbers:
            loop.remove_signal_handler(each)
        bulk.stop(f"by {number.name}")
        logger.info("asked to stop by %s: waiting up to %.0f s for the prompts in flight", number.name, grace_s)

    for number in numbers:
        loop.add_signal_handler(number, stop, number)


def report(tally: Tally, failures: Failures) -> int:
    """Say how it went; returns the exit code."""
    num_failed = tally.num_failed + failures.num_rows
    print(
        f"{tally.num_done} prompts done ({tally.num_samples} samples, {tally.num_duplicates} of them were in the "
        f"stream; {tally.num_tokens} tokens), {tally.num_known} were done before, {num_failed} given up"
    )
    if tally.num_shared:
        print(
            f"prompts with the tokens of another one: {tally.num_shared}; they have its samples, which are in the "
            "stream once, under the id that came first"
        )
    if num_failed:
        print(f"what was given up, and why: {failures.path}; the next run tries again")
    if tally.stopped:
        print(f"stopped {tally.stopped}; {tally.num_cut_off} prompts were cut off. Run it again for the rest")
        return EXIT_STOPPED
    return EXIT_FAILURES if num_failed else EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    parser = Parser(prog="python -m jobs.sample", description=__doc__)
    add_config_options(parser, dry_run="print the plan and stop")
    connection.add_submit(parser)
    arguments = parser.parse_args(argv)
    configure_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for every request
    try:
        with told_by_the_machine():
            config = resolve_config(arguments)
            if arguments.submit is not None and not arguments.dry_run:
                from jobs.submit import submit

                return submit(config, arguments.submit, "sample", config.sampling_job.grace_s)
            folder = Path.cwd()
            job = Job(placed(config, folder, is_unpacked=connection.is_unpacked(folder)))
            connection.warn_of_early_kill("sampling_job.grace_s", config.sampling_job.grace_s)
            return asyncio.run(job.plan() if arguments.dry_run else job.run())
    except (Overloaded, Unavailable, Unreachable) as error:
        print(f"jobs.sample: {error}; run it again later", file=sys.stderr)
        return EXIT_STOPPED
    except CongError as error:
        print(f"jobs.sample: {error}", file=sys.stderr)
        return EXIT_WRONG
    except KeyboardInterrupt:
        print("jobs.sample: interrupted; run it again for the rest", file=sys.stderr)
        return EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main())
