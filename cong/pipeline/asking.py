"""Samples of every prompt from a service that holds the networks, into a stream, in the order of the prompts."""

import asyncio
from collections.abc import Callable, Sequence

from cong.client import AsyncClient, Patience
from cong.client.bulk import Bounds, Bulk, GivenUp
from cong.client.units import Ask, Units
from cong.config import RunConfig
from cong.errors import ConfigError, Unavailable
from cong.pipeline.attempt import Attempt
from cong.pipeline.given import read_prompt_set
from cong.pipeline.ordering import place_of
from cong.pipeline.sampling import places_of
from cong.pipeline.stopping import Stop, StoppedEarly
from cong.schemas import Prompt
from cong.train.trainee import fingerprint_of
from cong.wire import InfoReply, SampleReply

_LOOK_S = 0.2


def sample_there(config: RunConfig, stop: Stop, label: str) -> None:
    """Ask for what is missing; raises `StoppedEarly` where it is asked to stop before the end."""
    prompt_set = read_prompt_set(config)
    num_samples = config.sampling_job.num_samples
    with Attempt(config, places_of(prompt_set, num_samples), label) as attempt:
        for row in prompt_set.bad_rows:
            attempt.bad_row(row.where, row.problem)
        missing = set(attempt.missing)
        asked = [p for p in prompt_set.prompts if any((p.prompt_id, index) in missing for index in range(num_samples))]

        def take(reply: SampleReply) -> None:
            for sample in sorted(reply.samples, key=lambda each: each.record.sample_index):
                if place_of(sample.record) in missing:
                    attempt.take(sample.record)

        def give_up(failure: GivenUp) -> None:
            places = [(failure.prompt.prompt_id, index) for index in range(num_samples)]
            attempt.give_up([place for place in places if place in missing], failure.error, failure.reason)

        if asked:
            asyncio.run(_ask(config, asked, take, give_up, stop))
        attempt.complete()


class _Nothing:
    """No unit is known beforehand: what is known was left out."""

    def __contains__(self, unit: str) -> bool:
        return False

    def add(self, unit: str) -> None:
        """Nobody asks again in this run."""


async def _ask(
    config: RunConfig,
    prompts: Sequence[Prompt],
    take: Callable[[SampleReply], None],
    give_up: Callable[[GivenUp], None],
    stop: Stop,
) -> None:
    job = config.sampling_job
    ask = Ask(config.sampling, job.num_samples, "none", job.deadline_s)
    patience = Patience(total_s=job.patience_s, max_tries=job.max_tries)
    async with AsyncClient(job.url, patience=patience) as client:
        await client.wait_ready(job.ready_s)
        info = await client.info()
        require_networks(config, info, client.url)
        ask.require_offered(info, client.url)
        in_flight = min(job.in_flight, info.limits.max_concurrent_per_key)
        bulk = Bulk(
            client,
            ask,
            Units(info, ask, with_stream=False),
            Bounds(in_flight, job.max_failures_in_a_row, job.grace_s),
            _Nothing(),
            take=take,
            give_up=give_up,
            settled=lambda tally: None,
        )
        watching = asyncio.create_task(_no_longer(bulk, stop))
        try:
            tally = await bulk.run(prompts)
        finally:
            watching.cancel()
    if stop.is_set:
        raise StoppedEarly
    if tally.stopped:
        raise Unavailable(f"{job.url}: {tally.stopped}; run the pipeline again when the service is back")


def require_networks(config: RunConfig, info: InfoReply, url: str) -> None:
    """Refuse a service that holds other networks than the stage wants."""
    models = config.models
    wanted = {"aligned": models.aligned, "base": models.base}
    held = {network.role: network.fingerprint for network in info.networks}
    for role, settings in wanted.items():
        fingerprint = fingerprint_of(settings, models)
        if held.get(role) != fingerprint:
            raise ConfigError(
                f"{url} holds {held.get(role, 'nothing')} as {role}, and this stage needs {fingerprint}, which lies in "
                f"{settings.source}; start the service with it, or leave pipeline.url empty"
            )


async def _no_longer(bulk: Bulk, stop: Stop) -> None:
    while not stop.is_set:
        await asyncio.sleep(_LOOK_S)
    bulk.stop("as asked")
