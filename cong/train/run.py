"""A training run from its configuration to an exported network: puts the pieces together and hands them to the loop.

Every rank calls `train` with the same configuration. What a run leaves lies in its output folder; a run that was ended
goes on from there.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from cong.config import RunConfig
from cong.config.train import BatchSettings
from cong.errors import ConfigError, StreamInterrupted
from cong.models import Network, Tokenizer
from cong.objectives import FrozenNetwork, Objective, fused_scores, policy_scores
from cong.telemetry import progress as show_progress
from cong.train.arithmetic import StepArithmetic
from cong.train.backend import Backend, BackendFactory
from cong.train.checkpoint import Checkpoint
from cong.train.data.feed import Feed, fitting_examples
from cong.train.data.source import Source
from cong.train.folder import RunFolder
from cong.train.loop import Observer, StepReport, run
from cong.train.monitor import Monitor
from cong.train.origins import FrozenNetworks, evaluation_examples, method_of, open_source
from cong.train.progress import Outcome, Progress
from cong.train.randomness import seed_all
from cong.train.recipe import make_recipe
from cong.train.resuming import find_checkpoint, resume
from cong.train.saving import Saving
from cong.train.schedule import learning_rate_share
from cong.train.stopping import StopRequest
from cong.train.torch_backend import torch_backend
from cong.train.trainee import prepare
from cong.train.validation import Validation, is_held_out

logger = logging.getLogger(__name__)

_SCORED_AT_ONCE = 1024
"""Examples whose frozen log-probs are computed and stored together."""

Report = Callable[[Mapping[str, float], Path], None]
"""Told on every rank of every committed checkpoint: the newest numbers, and its folder."""


_NOT_BEGUN = Outcome(None, False, None, {}, {})


def train(
    config: RunConfig,
    make_backend: BackendFactory | None = None,
    *,
    report: Report = lambda metrics, folder: None,
    stop: StopRequest | None = None,
    observers: Sequence[Observer] = (),
    is_quiet: bool = False,
) -> Outcome:
    """Train as the configuration says, from the newest checkpoint if there is one; `observers` hear of every step."""
    settings = config.train
    method = method_of(settings.objective)
    make_backend = make_backend or torch_backend(config.models.device)
    stop = stop or StopRequest()
    seed_all(settings.seed, rank=0)  # a new adapter is the same on every rank
    network = prepare(settings, config.models)
    arithmetic = StepArithmetic(network.model, is_recomputed=settings.has_activation_checkpointing)
    backend = make_backend(network.model, settings)
    with ExitStack() as stack:
        stack.callback(backend.close)
        folder = stack.enter_context(RunFolder(config, is_first=backend.rank == 0))
        try:
            source = open_source(config, settings.data, method, network.tokenizer, lambda: stop.is_set)
        except StreamInterrupted:
            return _NOT_BEGUN
        facts = {
            "network": {"fingerprint": network.fingerprint},
            "tokenizer": {"fingerprint": network.tokenizer.fingerprint},
            "data": source.identity,
        }
        recipe = make_recipe(settings, facts)
        checkpoint = find_checkpoint(backend, folder, recipe)
        if checkpoint is not None:
            # Before anything is looked through: the run goes on with what there was when it began.
            source.seek(checkpoint.state["progress"]["position"])
            if (left := _left(backend, folder, checkpoint)) is not None:
                return left
        folder.begin()
        progress = Progress(_num_steps(config, source), source.position)
        frozen = FrozenNetworks(config, backend, network.fingerprint, is_growing=source.is_growing)
        fitted = _fitted(config, network)
        feed = _feed(fitted, backend, source, method, frozen)
        validation = _validation(fitted, backend, source, method, frozen, network.tokenizer)
        is_quiet = is_quiet or backend.rank > 0
        if not source.is_growing and not _score(source, fitted, frozen, method, backend, stop, is_quiet=is_quiet):
            return _NOT_BEGUN
        frozen.training_begins()
        recipe |= {f"frozen.{name}": fingerprint for name, fingerprint in frozen.fingerprints.items()}
        seed_all(settings.seed, backend.rank)
        if checkpoint is None:
            ledger = folder.new_ledger()
        else:
            progress, ledger = resume(checkpoint, backend, feed, recipe, folder)
        monitor = stack.enter_context(folder.monitor(progress, arithmetic, backend, is_quiet=is_quiet))
        saving = Saving(
            backend,
            folder.checkpoints,
            settings.checkpoints,
            ledger,
            recipe,
            counts=lambda: feed.counts,
            wants_stop=lambda: stop.is_set,
            remote=folder.remote,
            saved_step=progress.step,
            on_saved=lambda path: report(monitor.numbers, path),
        )
        judge = _Judge(validation, monitor, settings.evaluation.every_steps)
        if checkpoint is None:
            judge(progress)
        num_steps, full_rate = progress.num_steps, settings.optimizer.learning_rate
        progress = run(
            backend,
            method,
            feed,
            progress,
            lambda step: full_rate * learning_rate_share(settings.schedule, step, num_steps),
            [monitor, judge, *observers, saving],
            should_stop=lambda: saving.is_stopping,
            score=fused_scores if settings.is_compiled else policy_scores,
        )
        is_stopped = (saving.is_stopping or feed.is_interrupted) and progress.step < progress.num_steps
        if not is_stopped and not progress.num_examples:
            raise _nothing_fits(feed.counts, settings.batches, fitted.train.batches)
        saving.save(progress)
        if is_stopped:
            logger.info("stopped as asked at step %d of %d; run again to go on", progress.step, progress.num_steps)
            return Outcome(progress, False, None, monitor.numbers, feed.counts)
        _tell_of_an_early_end(progress, backend)
        judge(progress)
        counts = {**source.counts, **feed.counts}
        model_folder = folder.finish(backend, network, recipe, monitor, progress, counts)
        return Outcome(progress, True, model_folder, monitor.numbers, counts)


def _tell_of_an_early_end(progress: Progress, backend: Backend) -> None:
    if progress.step < progress.num_steps and backend.rank == 0:
        logger.warning(
            "the stream ended after %d of the %d steps that the learning rate was planned for; set train.max_steps "
            "or stream.read.max_records to what comes",
            progress.step,
            progress.num_steps,
        )


def _left(backend: Backend, folder: RunFolder, checkpoint: Checkpoint) -> Outcome | None:
    """How the run ended, where its last step is done and what it leaves is all there."""
    progress = Progress(**checkpoint.state["progress"])
    said = backend.from_first(folder.summary() if backend.rank == 0 else "")
    if progress.step < progress.num_steps or not said:
        return None
    summary = json.loads(said)
    return Outcome(progress, True, folder.model, summary["metrics"], summary["counts"])


def _nothing_fits(counts: Mapping[str, int], asked: BatchSettings, fitted: BatchSettings) -> ConfigError:
    found = ", ".join(f"{name} {number}" for name, number in counts.items())
    limit = (
        f"train.batches.max_example_tokens is {asked.max_example_tokens}; raise it"
        if asked == fitted
        else f"the network reads {fitted.max_example_tokens} tokens; train one that reads more"
    )
    return ConfigError(
        f"nothing was trained: every example was left out ({found}). {limit}, or give other data, with another "
        "output_dir"
    )


class _Judge:
    """Evaluates every so many steps, and once for each step at most, however many processes have come to it."""

    def __init__(self, validation: Validation | None, monitor: Monitor, every_steps: int) -> None:
        self._validation = validation
        self._monitor = monitor
        self._every_steps = every_steps

    def __call__(self, progress: Progress, report: StepReport | None = None) -> None:
        is_due = report is None or (self._every_steps and progress.step % self._every_steps == 0)
        if self._validation is None or not is_due or self._monitor.judged_step == progress.step:
            return
        self._monitor.judged(progress.step, self._validation(progress.share))


def _num_steps(config: RunConfig, source: Source) -> int:
    """Optimiser steps of the whole run; the last one of an epoch may be smaller."""
    settings, num_examples = config.train, source.num_examples
    if num_examples is None:
        if not settings.max_steps:
            raise ConfigError(
                "stream.read.follow is set, so the number of steps is not known, and the learning rate depends on it; "
                "give train.max_steps or stream.read.max_records"
            )
        return settings.max_steps
    if not num_examples:
        found = ", ".join(f"{name} {number}" for name, number in source.counts.items()) or "none was read"
        raise ConfigError(
            f"there is nothing to train on: no example passes ({found}); give other data, or a wider filter"
        )
    num_steps = source.num_epochs * math.ceil(num_examples / settings.batches.batch_size)
    return min(num_steps, settings.max_steps) if settings.max_steps else num_steps


def _fitted(config: RunConfig, network: Network) -> RunConfig:
    """What is longer than the network can read is too long, whatever may be."""
    batches, longest = config.train.batches, network.architecture.context_length
    if longest is None or batches.max_example_tokens <= longest:
        return config
    logger.info("%s reads %d tokens: train.batches.max_example_tokens counts as so many", network.name, longest)
    batches = batches.model_copy(update={"max_example_tokens": longest})
    return config.model_copy(update={"train": config.train.model_copy(update={"batches": batches})})


def _feed(config: RunConfig, backend: Backend, source: Source, method: Objective, frozen: FrozenNetworks) -> Feed:
    share = config.train.evaluation.held_out_share
    return Feed(
        source,
        config.train.batches,
        unit=method.needs.unit,
        rank=backend.rank,
        world_size=backend.world_size,
        frozen_names=method.needs.frozen,
        frozen=frozen.of(method.needs.frozen),
        is_held_out=lambda prompt_id: is_held_out(prompt_id, share),
        # Two ranks may look at a growing stream at different moments.
        from_first=backend.from_first if source.is_growing and backend.world_size > 1 else None,
    )


def _validation(
    config: RunConfig,
    backend: Backend,
    source: Source,
    method: Objective,
    frozen: FrozenNetworks,
    tokenizer: Tokenizer,
) -> Validation | None:
    """Judged are the first examples that fit; what they are compared with is computed now."""
    found = evaluation_examples(config, method, tokenizer, source)
    fitting = fitting_examples(found, config.train.batches, {})
    if not fitting:
        if found or config.train.evaluation.held_out_share or config.train.evaluation.data is not None:
            raise ConfigError(
                f"train.evaluation asks for examples: {len(found)} are found and none of them fits; give more of them, "
                "or a larger train.batches.max_example_tokens"
            )
        return None
    names: tuple[FrozenNetwork, ...] = (*(name for name in method.needs.frozen if name != "reference"), "reference")
    return Validation(backend, method, frozen.of(names)(fitting), config.train.batches)


def _score(
    source: Source,
    config: RunConfig,
    frozen: FrozenNetworks,
    method: Objective,
    backend: Backend,
    stop: StopRequest,
    *,
    is_quiet: bool,
) -> bool:
    """Compute what frozen networks say of every example, before the first step; whether it was done to the end."""
    if not method.needs.frozen:
        return True
    attach, batches = frozen.of(method.needs.frozen), config.train.batches
    with show_progress("frozen log-probs", source.num_examples, unit="examples", is_quiet=is_quiet) as bar:
        for examples in source.scan(_SCORED_AT_ONCE):
            attach(fitting_examples(examples, batches, {}))
            bar.advance(len(examples), computed=frozen.num_computed)
            wants_stop = torch.tensor([float(stop.is_set)], device=backend.device)
            if backend.total(wants_stop).item():
                return False
    return True
