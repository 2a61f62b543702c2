"""A service from a configuration: networks loaded, engine made, stream opened. Knows no HTTP and no Ray."""

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cong import __version__
from cong.config import RunConfig
from cong.config.engine import Backend
from cong.engine import open_engine
from cong.models import NetworkSet, require_weights, roles_of
from cong.schemas import SamplingParameters
from cong.service.archive import Archive
from cong.service.facts import Facts
from cong.service.service import SampleService
from cong.service.vocabulary import Vocabulary
from cong.wire import NetworkInfo

log = logging.getLogger(__name__)

T = TypeVar("T")

SWITCH_INTERVAL_S = 0.0005
"""How long another thread may keep the engine's thread from going on.

Each of its many short operations lets go of the interpreter; with Python's own 5 ms, callers that are being answered
would stretch every step.
"""


def facts_of(networks: NetworkSet, max_tokens: int, defaults: SamplingParameters, backend: Backend = "cong") -> Facts:
    """What is known of a set of networks behind an engine."""
    return Facts(
        backend=backend,
        networks=tuple(
            NetworkInfo(
                role=network.role,
                name=network.name,
                fingerprint=network.fingerprint,
                num_parameters=network.num_parameters,
                architecture=network.architecture.model_type,
            )
            for network in networks.networks
        ),
        vocabulary=Vocabulary(networks.tokenizer, networks.shared_vocab_size, networks.text_fingerprint),
        max_tokens=max_tokens,
        defaults=defaults,
        software={"cong": __version__, "engine": backend},
    )


def open_service(config: RunConfig, writer_id: str) -> SampleService:
    """The service of a configuration, not started yet; `writer_id` is used by no other process at the same time.

    Takes as long as the networks take to load; before that it is told what would make it useless: a stream that cannot
    be written, default parameters that fit no request.
    """
    # Those of a request that names none: without them it could serve nobody who does not.
    require_weights(config.sampling, config.models)
    location = config.stream.location or str(Path(config.output_dir) / "stream")
    if config.service.may_store_prompts:
        Archive.require_place(location, config.stream, writer_id)
    named = ", ".join(f"{role} {getattr(config.models, role).source}" for role in roles_of(config.models))
    log.info("loading %s; dtype %s, device %s", named, config.models.dtype, config.models.device)
    engine = in_a_thread_that_ends(
        lambda: open_engine(config.models, config.engine, writer=writer_id, is_for_good=True)
    )
    try:
        facts = facts_of(engine.networks, engine.max_tokens, config.sampling, config.engine.backend)
        archive = None
        if config.service.may_store_prompts:
            # The id is claimed no earlier: from then on its former process is fenced, and readers wait for this one.
            archive = Archive.open(location, config.stream, writer_id, config.service.store_timeout_s)
    except BaseException:
        engine.close()
        raise
    if sys.getswitchinterval() > SWITCH_INTERVAL_S:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
    return SampleService(engine, facts, config.service, archive)


def in_a_thread_that_ends(work: Callable[[], T]) -> T:
    """The result of some tensor work, done where it leaves no helpers behind.

    OpenMP gives helpers to each thread that computes, and they stay with it. Where all of them together are more than
    there are processors, they sleep at every barrier instead of waiting awake, and each of the engine's many short
    operations pays for being woken: a fifth of a step of 64 samples, more than half of a step of one.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001
            # Raised again by whoever asked for the work.
            failed.append(error)

    thread = threading.Thread(target=run, name="loading", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
