"""The engine protocol over vLLM: its scheduler, cache and kernels, our checks, drawing and records.

Synchronous and single-threaded like our own engine: one call of `events` is one step of vLLM. Knows vLLM's public
classes only; what is internal lies in `sampler`.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
import vllm
from vllm import EngineArgs, LLMEngine, RequestOutput, TokensPrompt
from vllm import SamplingParams as VllmSampling
from vllm.sampling_params import RequestOutputKind
from vllm.v1.metrics.loggers import StatLoggerBase

from cong import __version__
from cong.config.engine import EngineConfig
from cong.engine.desk import Desk, generate
from cong.engine.protocol import EngineStats, Event, Generate, Rate, TokenRecord
from cong.engine.sequence import Sequence
from cong.engine.vllm_backend.plugin import ARCHITECTURE, register
from cong.engine.vllm_backend.versions import require_known_runner, require_tested
from cong.engine.vllm_backend.wishes import ARGUMENT, Wish
from cong.errors import ModelError, UnsupportedModel
from cong.models import NetworkSet
from cong.schemas import NetworkIdentity, Prompt, SampleRecord, SampleRequest

log = logging.getLogger(__name__)

WORKER = "cong.engine.vllm_backend.sampler.MixingWorker"


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
        self._ledger = _Ledger()
        self._llm = _start(networks, config, self._ledger)
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
            parameters = sequence.parameters
            wish = Wish(
                parameters=parameters,
                sample_index=sequence.sample_index,
                stop_token_ids=tuple(sorted(sequence.stop_token_ids)),
            )
            # vLLM may end a sample by itself where it ends as we do; else we end it, a step later.
            ends = [] if parameters.min_tokens else sorted(sequence.stop_token_ids)
            options = {"max_tokens": parameters.max_tokens, "stop_token_ids": ends, "logprobs": self._num_networks}
            self._add(sequence, sequence.prompt_token_ids, wish, options)

    def score(self, request: Rate) -> None:
        """Queue a scoring; its answer is an event."""
        sequence = self._desk.open_score(request)
        wish = Wish(parameters=sequence.parameters, last_target=sequence.targets[-1])
        options: dict[str, Any] = {"max_tokens": 1, "logprobs": self._num_networks}
        if len(sequence.targets) > 1:
            options["prompt_logprobs"] = self._num_networks - 1
        self._add(sequence, (*sequence.prompt_token_ids, *sequence.targets[:-1]), wish, options)

    def cancel(self, request_id: str) -> None:
        """End what is left of a request; unknown and finished ones are left alone."""
        self._abort(self._desk.end(request_id, "cancelled"))

    def events(self) -> list[Event]:
        """Do one step and return what happened; empty when there was nothing to do."""
        self._abort(self._desk.expire())
        if self._desk.has_open:
            self._step()
        return self._desk.take_events()

    def generate(
        self, requests: Iterable[SampleRequest], known_keys: Collection[str] = frozenset()
    ) -> Iterator[SampleRecord]:
        """Samples of many requests as they finish, in any order, but for those whose key is known.

        Nothing else uses the engine meanwhile.
        """
        return generate(self, self.keys, requests, known_keys, self.max_running)

    def keys(self, request: SampleRequest) -> tuple[str, ...]:
        """The keys of the request's samples, in order of their index, whether they are made yet or not."""
        return self._desk.keys(request)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt in any of its forms."""
        return self._desk.encode(prompt)

    def stats(self) -> EngineStats:
        """Where the engine stands; bytes and operations are not counted by this one."""
        ledger = self._ledger
        num_running = min(ledger.num_running, len(self._sequences))
        return EngineStats(
            num_seats=self.max_running,
            num_running=num_running,
            num_waiting=len(self._sequences) - num_running,
            num_blocks=self._num_blocks,
            num_blocks_free=round((1.0 - ledger.cache_usage) * self._num_blocks),
            num_prefix_hits=ledger.num_hit_tokens // self._block_size,
            num_preemptions=ledger.num_preemptions,
            num_steps=self._counts["steps"],
            num_prompt_tokens=ledger.num_prompt_tokens,
            num_drawn_tokens=self._counts["drawn"],
            num_finished=self._desk.num_finished,
            seconds=dict(self._seconds),
        )

    def close(self) -> None:
        """Stop vLLM's processes and free what it holds; a second time does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._llm.engine_core.shutdown()

    def _add(self, sequence: Sequence, prompt_token_ids: tuple[int, ...], wish: Wish, options: dict[str, Any]) -> None:
        self._num_named += 1
        name = str(self._num_named)
        parameters = VllmSampling(
            temperature=0.0,  # no draw of vLLM's own, and no random state
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={ARGUMENT: wish.model_dump(mode="json")},
            **options,
        )
        self._llm.add_request(name, TokensPrompt(prompt_token_ids=list(prompt_token_ids)), parameters)
        self._sequences[name] = sequence

    def _step(self) -> None:
        started = time.perf_counter()
        outputs = self._llm.step()
        stepped = time.perf_counter()
        now = self._clock()
        self._counts["steps"] += 1
        ended = []
        for output in outputs:
            sequence = self._sequences.get(output.request_id)
            if sequence is None:
                continue
            self._take(sequence, output, now)
            if output.finished:
                del self._sequences[output.request_id]
            elif sequence.is_finished:
                ended.append(sequence)
        self._abort(ended)
        self._seconds["step"] += stepped - started
        self._seconds["commit"] += time.perf_counter() - stepped

    def _take(self, sequence: Sequence, output: RequestOutput, now: float) -> None:
        """What a step says of one sequence."""
        if sequence.admitted_at is None:
            sequence.admitted_at = _admitted_at(sequence, output, now)
        completion = output.outputs[0]
        tokens = [
            _token(token_id, entry) for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True)
        ]
        self._counts["drawn"] += len(tokens)
        if sequence.targets:
            self._take_score(sequence, output, tokens, now)
        else:
            for token in tokens:
                if not sequence.is_finished:
                    self._desk.take_token(sequence, token, now)
        if output.finished and not sequence.is_finished:
            raise ModelError(f"vLLM ended a request by itself ({completion.finish_reason}) that is not at its end")

    def _take_score(self, sequence: Sequence, output: RequestOutput, tokens: list[TokenRecord], now: float) -> None:
        if not tokens:
            return
        first = len(sequence.prompt_token_ids)
        before = (output.prompt_logprobs or [])[first:]
        sequence.records = [
            TokenRecord(token_id, tuple(value.logprob for value in entry.values()))
            for token_id, entry in zip(sequence.targets[:-1], before, strict=True)
        ]
        sequence.records.append(tokens[-1])
        sequence.finish_reason = "stop"
        self._desk.finish(sequence, now)

    def _abort(self, ended: list[Sequence]) -> None:
        if ended:
            gone = {id(sequence) for sequence in ended}
            names = [name for name, sequence in self._sequences.items() if id(sequence) in gone]
            self._llm.abort_request(names)
            for name in names:
                del self._sequences[name]


class _Ledger(StatLoggerBase):
    """What vLLM's scheduler tells after each step."""

    def __init__(self) -> None:
        self.num_running = 0
        self.cache_usage = 0.0
        self.num_hit_tokens = 0
        self.num_preemptions = 0
        self.num_prompt_tokens = 0

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> "_Ledger":
        """vLLM asks for a factory; there is one engine, so one ledger."""
        return self

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Take a step's numbers."""
        if scheduler_stats is not None:
            self.num_running = scheduler_stats.num_running_reqs
            self.cache_usage = scheduler_stats.kv_cache_usage
            if scheduler_stats.prefix_cache_stats is not None:
                self.num_hit_tokens += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            self.num_preemptions += iteration_stats.num_preempted_reqs
            self.num_prompt_tokens += iteration_stats.prompt_token_stats.computed

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


def _start(networks: NetworkSet, config: EngineConfig, ledger: _Ledger) -> LLMEngine:
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
        block_size=config.vllm.block_size or None,
        kv_cache_memory_bytes=config.kv_memory_bytes or None,
        gpu_memory_utilization=config.kv_memory_fraction,
        tensor_parallel_size=config.vllm.tensor_parallel_size,
        enforce_eager=config.vllm.is_eager,
        enable_prefix_caching=True,
        async_scheduling=False,  # a token must be known before the next one is drawn
        worker_extension_cls=WORKER,
    )
    try:
        vllm_config = arguments.create_engine_config()
        require_known_runner(is_v2=vllm_config.use_v2_model_runner)
        llm = LLMEngine.from_vllm_config(vllm_config, stat_loggers=[ledger])
        llm.collective_rpc("draw_by_mixing", args=(len(networks.networks), networks.shared_vocab_size, config.kernel))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        roles = ", ".join(f"{n.name} ({n.architecture.model_type})" for n in networks.networks)
        raise ModelError(f"vLLM {vllm.__version__} does not start with {roles} as one model: {error}") from error
    return llm


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


def _token(token_id: int, entry: Any) -> TokenRecord:
    """A drawn token from what the sampler has put beside it."""
    values = [*entry.values()]
    return TokenRecord(
        token_id,
        tuple(value.logprob for value in values[1:]),
        values[0].logprob,
        values[0].rank or 0,
    )


def _admitted_at(sequence: Sequence, output: RequestOutput, now: float) -> float:
    """When vLLM began to work on a sequence, on the engine's clock."""
    metrics = output.metrics
    if metrics is None or not metrics.scheduled_ts:
        return now
    waited_s = max(0.0, float(metrics.scheduled_ts) - float(metrics.queued_ts))
    return min(now, sequence.submitted_at + waited_s)
