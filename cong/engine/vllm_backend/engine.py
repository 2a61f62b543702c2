"""The engine protocol over vLLM: its scheduler, cache and kernels, our checks, drawing and records.

Synchronous and single-threaded like our own engine: one call of `events` is one step of vLLM. Knows vLLM's public
classes only; what is internal lies in `internals`.
"""

import contextlib
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
import torch
import vllm
from vllm import EngineArgs, LLMEngine
from vllm.platforms import current_platform

from cong import __version__
from cong.config.engine import EngineConfig
from cong.engine.cpu.waiting import Waiting
from cong.engine.desk import Desk
from cong.engine.offline import generate
from cong.engine.protocol import EngineStats, Event, Generate, Rate, TokenRecord
from cong.engine.sequence import Sequence
from cong.engine.vllm_backend.internals import Core, Told
from cong.engine.vllm_backend.plugin import ARCHITECTURE, register
from cong.engine.vllm_backend.versions import require_known_runner, require_tested
from cong.engine.vllm_backend.wishes import Wish
from cong.errors import ModelError, UnsupportedModel
from cong.models import NetworkSet
from cong.schemas import NetworkIdentity, Prompt, SampleRecord, SampleRequest

log = logging.getLogger(__name__)

ONE_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""vLLM's own variable: 0 = its engine and its worker run in the process that starts it."""

CPU_BLOCK = 64
"""Tokens of a block on a CPU, half of what vLLM takes: its kernel attends faster, and shorter prefixes are shared."""

WORKER = "cong.engine.vllm_backend.internals.MixingWorker"


class VllmEngine:
    """K networks as one vLLM model; `networks` need to hold no weights."""

    def __init__(
        self,
        networks: NetworkSet,
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        writer: str = "",
    ) -> None:
        require_tested(vllm.__version__)
        _require_one_cache(networks)
        self.networks = networks
        self.config = config
        self._clock = clock
        self._num_networks = len(networks.networks)
        self._llm = _start(networks, config)
        self._core = Core(self._llm, self._num_networks)
        computes_here = self._core.is_here and current_platform.is_cpu()
        self._waiting = Waiting() if computes_here and torch.get_num_threads() > 1 else None
        cache = self._llm.vllm_config.cache_config
        self._num_blocks = int(cache.num_gpu_blocks) - 1  # vLLM keeps one for nobody
        self._block_size = int(cache.block_size)
        software = {"cong": __version__, "torch": torch.__version__, "engine": "vllm", "vllm": vllm.__version__}
        self._desk = Desk(networks, self.max_tokens, software, writer, clock)
        self._sequences: dict[str, Sequence] = {}
        """By the id under which vLLM knows the sample."""
        self._num_named = 0
        self._is_closed = False
        self._counts: Counter[str] = Counter()
        self._seconds = {"step": 0.0, "commit": 0.0}

    @property
    def identities(self) -> tuple[NetworkIdentity, ...]:
        """The networks, in the order of a mixture's weights."""
        return self.networks.identities

    @property
    def has_work(self) -> bool:
        """Whether another step would do anything."""
        return self._desk.has_open or self._desk.has_news

    @property
    def max_tokens(self) -> int:
        """Prompt and completion tokens of the longest sequence that can be served."""
        return min(self._num_blocks * self._block_size, int(self._llm.vllm_config.model_config.max_model_len))

    @property
    def max_running(self) -> int:
        """Sequences that are computed in one step."""
        return self.config.max_running

    def submit(self, request: Generate) -> None:
        """Queue samples; refuses what can never be served."""
        for sequence in self._desk.open_samples(request):
            wish = Wish(
                parameters=sequence.parameters,
                sample_index=sequence.sample_index,
                stop_token_ids=tuple(sorted(sequence.stop_token_ids)),
            )
            self._core.add(self._name(sequence), sequence.prompt_token_ids, wish)

    def score(self, request: Rate) -> None:
        """Queue a scoring; its answer is an event."""
        sequence = self._desk.open_score(request)
        wish = Wish(parameters=sequence.parameters, last_target=sequence.targets[-1])
        prompt_token_ids = (*sequence.prompt_token_ids, *sequence.targets[:-1])
        self._core.add(self._name(sequence), prompt_token_ids, wish, scores_prompt=len(sequence.targets) > 1)

    def cancel(self, request_id: str) -> None:
        """End what is left of a request; unknown and finished ones are left alone."""
        self._abort(self._desk.end(request_id, "cancelled"))

    def events(self) -> list[Event]:
        """Do one step and return what happened; empty when there was nothing to do."""
        self._abort(self._desk.expire())
        if self._desk.has_open:
            try:
                self._step()
            except BaseException:  # a Ctrl-C, or memory that ran out; what was asked may be taken back
                self._core.break_off()
                raise
        return self._desk.take_events()

    def generate(
        self, requests: Iterable[SampleRequest], known_keys: Collection[str] = frozenset()
    ) -> Iterator[SampleRecord]:
        """Samples of many requests as they finish, in any order, but for those whose key is known.

        Nothing else uses the engine meanwhile.
        """
        return generate(self, requests, known_keys)

    def keys(self, request: SampleRequest) -> tuple[str, ...]:
        """The keys of the request's samples, in order of their index, whether they are made yet or not."""
        return self._desk.keys(request)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt in any of its forms."""
        return self._desk.encode(prompt)

    def stats(self) -> EngineStats:
        """Where the engine stands; bytes and operations are not counted by this one."""
        core = self._core
        num_running = min(core.num_running, len(self._sequences))
        return EngineStats(
            num_seats=self.max_running,
            num_running=num_running,
            num_waiting=len(self._sequences) - num_running,
            num_blocks=self._num_blocks,
            num_blocks_free=round((1.0 - core.cache_usage) * self._num_blocks),
            num_prefix_hits=core.num_hit_tokens // self._block_size,
            num_preemptions=core.num_preemptions,
            num_steps=self._counts["steps"],
            num_prompt_tokens=core.num_prompt_tokens,
            num_drawn_tokens=self._counts["drawn"],
            num_finished=self._desk.num_finished,
            seconds=dict(self._seconds),
        )

    def close(self) -> None:
        """Stop vLLM's processes and free what it holds; a second time does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._core.close()
            if self._waiting is not None:
                self._waiting.close()

    def _name(self, sequence: Sequence) -> str:
        self._num_named += 1
        name = str(self._num_named)
        self._sequences[name] = sequence
        return name

    def _step(self) -> None:
        started = time.perf_counter()
        step = self._core.step()
        stepped = time.perf_counter()
        now = self._clock()
        self._counts["steps"] += 1
        ended = []
        for told in step:
            sequence = self._sequences.get(told.name)
            if sequence is None:
                continue
            self._take(sequence, told, now)
            if told.end is not None:
                del self._sequences[told.name]
            elif sequence.is_finished:
                ended.append(sequence)
        self._abort(ended)
        self._seconds["step"] += stepped - started
        self._seconds["commit"] += time.perf_counter() - stepped
        if self._waiting is not None:
            self._waiting.look()

    def _take(self, sequence: Sequence, told: Told, now: float) -> None:
        """What a step says of one sequence."""
        if sequence.admitted_at is None:
            sequence.admitted_at = now if told.waited_s is None else min(now, sequence.submitted_at + told.waited_s)
        self._counts["drawn"] += len(told.tokens)
        if sequence.targets:
            self._take_score(sequence, told, now)
        else:
            for token in told.tokens:
                if not sequence.is_finished:
                    self._desk.take_token(sequence, token, now)
        if told.end is not None and not sequence.is_finished:
            raise ModelError(f"vLLM ended a request by itself ({told.end}) that is not at its end")

    def _take_score(self, sequence: Sequence, told: Told, now: float) -> None:
        if not told.tokens:
            return
        before = told.prompt_logprobs[len(sequence.prompt_token_ids) - 1 :]
        tokens = [TokenRecord(token_id, values) for token_id, values in zip(sequence.targets[:-1], before, strict=True)]
        self._desk.take_scores(sequence, 0, [*tokens, told.tokens[-1]], now)

    def _abort(self, ended: list[Sequence]) -> None:
        if ended and not self._is_closed:
            gone = {id(sequence) for sequence in ended}
            names = [name for name, sequence in self._sequences.items() if id(sequence) in gone]
            self._core.abort(names)
            for name in names:
                del self._sequences[name]


def _start(networks: NetworkSet, config: EngineConfig) -> LLMEngine:
    first = networks.networks[0]
    described = [{"role": n.role, "folder": str(n.artefact.folder)} for n in networks.networks]
    register()
    arguments = EngineArgs(
        model=str(first.artefact.folder),
        skip_tokenizer_init=True,
        load_format="safetensors",
        generation_config="vllm",
        hf_overrides={
            "architectures": [ARCHITECTURE],
            "cong_networks": described,
            "cong_vocab_size": networks.shared_vocab_size,
        },
        dtype=str(first.dtype).removeprefix("torch."),
        max_model_len=networks.context_length,
        max_num_seqs=config.max_running,
        max_num_batched_tokens=max(config.max_step_tokens, config.max_running),
        block_size=config.vllm.block_size or (CPU_BLOCK if current_platform.is_cpu() else None),
        kv_cache_memory_bytes=config.kv_memory_bytes or None,
        gpu_memory_utilization=config.kv_memory_fraction,
        tensor_parallel_size=config.vllm.tensor_parallel_size,
        enforce_eager=config.vllm.is_eager,
        enable_prefix_caching=True,
        async_scheduling=False,  # a token must be known before the next one is drawn
        worker_extension_cls=WORKER,
    )
    is_alone = current_platform.is_cpu() and config.vllm.tensor_parallel_size == 1
    try:
        with _in_one_process() if is_alone else contextlib.nullcontext():
            vllm_config = arguments.create_engine_config()
            require_known_runner(is_v2=vllm_config.use_v2_model_runner)
            llm = LLMEngine.from_vllm_config(vllm_config)
        llm.collective_rpc("draw_by_mixing", args=(len(networks.networks), networks.shared_vocab_size, config.kernel))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        roles = ", ".join(f"{n.name} ({n.architecture.model_type})" for n in networks.networks)
        raise ModelError(f"vLLM {vllm.__version__} does not start with {roles} as one model: {error}") from error
    return llm


@contextlib.contextmanager
def _in_one_process() -> Iterator[None]:
    """vLLM started now computes in this process, on every core that torch uses here, unless the environment says else.

    By itself it starts two processes on a CPU and leaves a core to them. What it seeds at its start is put back.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    is_chosen = ONE_PROCESS in os.environ
    os.environ.setdefault(ONE_PROCESS, "0")
    try:
        yield
    finally:
        if not is_chosen:
            del os.environ[ONE_PROCESS]
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _require_one_cache(networks: NetworkSet) -> None:
    """Refuse networks whose keys and values vLLM cannot hold in the blocks of one table."""
    for network in networks.networks:
        if network.architecture.is_recurrent:
            raise UnsupportedModel(
                f"{network.name} has layers with a recurrent state; the vLLM back end mixes networks whose layers all "
                "keep keys and values"
            )
        if network.base_fingerprint is not None:
            raise UnsupportedModel(f"{network.name} is an adapter on shared weights; merge it into a folder of its own")
    kinds = {kind for network in networks.networks for kind in network.architecture.layer_kinds}
    sizes = {n.name: n.architecture.num_kv_heads * n.architecture.head_dim for n in networks.networks}
    if len(kinds) > 1 and len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UnsupportedModel(
            f"the networks have layers of several kinds ({', '.join(sorted(kinds))}) and keys of different widths "
            f"({listed}); vLLM's cache manager needs one width for several kinds: use networks of one size, or "
            "engine.backend cong"
        )
