"""vLLM's internals, touched here alone: our drawing inside its workers, and its core without its outputs.

What it relies on, in the versions that `TESTED_VERSIONS` names, checked before anything is served. In workers: the
model runner "V1" (`GPUModelRunner` and its CPU kin) draws by calling `self.sampler(logits=, sampling_metadata=)`,
rows of logits stand in the order of `input_batch.req_ids`, `requests[id]` keeps a request's parameters, prompt and
drawn tokens, `discard_request_mask` marks rows whose prompt is not through, `execute_model_state` is what a step
keeps until its tokens are drawn, and prompts are scored by the sampler's `compute_logprobs` and `gather_logprobs`. In
the engine's process: `LLMEngine` makes a request by `input_processor.process_inputs` and has an `engine_core` that
takes requests and gives a step's `EngineCoreOutputs`, whether it runs in this process (then the sampler is found
behind it) or in one of its own. Nothing of vLLM is patched: its runner is given another sampler, and its core is
asked for what it found, instead of for the objects that `LLMEngine.step` makes of that for every token.
Legend: R rows, K networks, V tokens of the shared vocabulary, J = 3 + K numbers of a drawn token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm import LLMEngine, SamplingParams, TokensPrompt
from vllm.v1.engine import EngineCoreEventType
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from cong.config.engine import KernelChoice
from cong.decoding import logprobs
from cong.engine.cpu.library import has_kernel
from cong.engine.drawing import Drawer, token_records
from cong.engine.protocol import TokenRecord
from cong.engine.scheduler import Chunk
from cong.engine.sequence import Sequence
from cong.engine.vllm_backend.versions import TESTED_VERSIONS
from cong.engine.vllm_backend.wishes import ARGUMENT, Wish
from cong.errors import ConfigError

_NEEDED = ("sampler", "input_batch", "requests", "discard_request_mask", "execute_model_state", "device", "dtype")
_NEEDED_OF_CORE = ("get_output", "add_request", "abort_requests", "reset_prefix_cache", "shutdown")


@dataclass(frozen=True)
class Told:
    """What a step has found of one request."""

    name: str
    tokens: list[TokenRecord]
    prompt_logprobs: list[tuple[float, ...]]
    """Of the prompt's tokens from the second on, where they were asked for."""
    waited_s: float | None
    """For how long it had waited when it was begun, told once."""
    end: str | None
    """Why vLLM has ended it, if it has."""


class Core:
    """vLLM's scheduler and workers, wherever they run."""

    def __init__(self, llm: LLMEngine, num_networks: int) -> None:
        self._client: Any = llm.engine_core
        self._inputs = llm.input_processor
        missing = [name for name in _NEEDED_OF_CORE if not hasattr(self._client, name)]
        if missing or not hasattr(self._inputs, "process_inputs"):
            raise _unknown(self._client, missing or ["process_inputs"])
        self._tasks = llm.get_supported_tasks()
        self._num_networks = num_networks
        self._sampler = _sampler_here(llm)
        self.num_running = 0
        self.cache_usage = 0.0
        self.num_hit_tokens = 0
        self.num_preemptions = 0
        self.num_prompt_tokens = 0

    @property
    def is_here(self) -> bool:
        """Whether it computes in this process."""
        return self._sampler is not None

    def add(self, name: str, prompt_token_ids: tuple[int, ...], wish: Wish, *, scores_prompt: bool = False) -> None:
        """Queue a request under a name that no other has had."""
        limits = wish.parameters
        is_sample = wish.last_target is None
        parameters = SamplingParams(
            temperature=0.0,  # no draw of vLLM's own, and no random state
            ignore_eos=True,
            detokenize=False,
            max_tokens=limits.max_tokens if is_sample else 1,
            # vLLM may end a sample by itself where it ends as we do; else we end it, a step later.
            stop_token_ids=[] if limits.min_tokens else list(wish.stop_token_ids),
            logprobs=None if self.is_here else self._num_networks,
            prompt_logprobs=self._num_networks - 1 if scores_prompt else None,
            extra_args={ARGUMENT: wish.model_dump(mode="json")},
        )
        prompt = TokensPrompt(prompt_token_ids=list(prompt_token_ids))
        self._client.add_request(self._inputs.process_inputs(name, prompt, parameters, self._tasks))

    def abort(self, names: list[str]) -> None:
        """Forget requests; those that have ended are left alone."""
        self._client.abort_requests(names)

    def step(self) -> list[Told]:
        """Wait for one step; there must be a request that has not ended."""
        outputs = self._client.get_output()
        scheduler = outputs.scheduler_stats
        if scheduler is not None:
            self.num_running = scheduler.num_running_reqs
            self.cache_usage = scheduler.kv_cache_usage
            if scheduler.prefix_cache_stats is not None:
                self.num_hit_tokens += scheduler.prefix_cache_stats.hits
        return [self._told(output) for output in outputs.outputs]

    def break_off(self) -> None:
        """After a step that did not end: let nobody share what it was to leave in blocks, which may not be there.

        Its requests cannot go on, only be aborted. In processes of vLLM's own, no step is broken off from here.
        """
        if self._sampler is not None:
            self._sampler.break_off()
            self._client.reset_prefix_cache(reset_running_requests=True)

    def close(self) -> None:
        """Stop it, and its processes where it has some."""
        self._client.shutdown()

    def _told(self, output: Any) -> Told:
        if output.prefill_stats is not None:
            self.num_prompt_tokens += output.prefill_stats.num_computed_tokens
        tensors = output.new_prompt_logprobs_tensors
        return Told(
            name=output.request_id,
            tokens=self._tokens(output),
            prompt_logprobs=[] if tensors is None else [tuple(row) for row in tensors.logprobs.tolist()],
            waited_s=self._waited_s(output.events) if output.events else None,
            end=None if output.finish_reason is None else str(output.finish_reason),
        )

    def _tokens(self, output: Any) -> list[TokenRecord]:
        if not output.new_token_ids:
            return []
        if self._sampler is not None:
            return [self._sampler.said[output.request_id]]
        columns = output.new_logprobs
        return [
            TokenRecord(token_id, (*values,), mixture_logprob, head_size)
            for token_id, (mixture_logprob, *values), head_size in zip(
                output.new_token_ids, columns.logprobs.tolist(), columns.sampled_token_ranks.tolist(), strict=True
            )
        ]

    def _waited_s(self, events: list[Any]) -> float | None:
        self.num_preemptions += sum(event.type == EngineCoreEventType.PREEMPTED for event in events)
        at = {event.type: float(event.timestamp) for event in reversed(events)}
        if not {EngineCoreEventType.QUEUED, EngineCoreEventType.SCHEDULED} <= at.keys():
            return None
        return max(0.0, at[EngineCoreEventType.SCHEDULED] - at[EngineCoreEventType.QUEUED])


class MixingWorker:
    """What vLLM adds to its worker class (`worker_extension_cls`), so that the engine can ask every worker for it."""

    model_runner: Any

    def draw_by_mixing(self, num_networks: int, vocab_size: int, kernel: KernelChoice) -> None:
        """Give the worker's model runner our sampler."""
        runner = self.model_runner
        missing = [name for name in _NEEDED if not hasattr(runner, name)]
        if missing or not hasattr(runner.sampler, "gather_logprobs"):
            raise _unknown(runner, missing or ["gather_logprobs"])
        has_cpu_kernel = runner.device.type == "cpu" and has_kernel(kernel, runner.device, runner.dtype)
        runner.sampler = MixingSampler(
            runner, Drawer(vocab_size, runner.device, has_kernel=has_cpu_kernel), num_networks
        )


class MixingSampler:
    """Draws by the rules of cong.decoding, each row by its own request's parameters."""

    logprobs_mode = "raw_logprobs"

    def __init__(self, runner: Any, drawer: Drawer, num_networks: int) -> None:
        self._runner = runner
        self._num_networks = num_networks
        self._vocab_size = drawer.vocab_size
        self._drawer = drawer
        self._sequences: dict[str, Sequence] = {}
        """By vLLM's id of the request."""
        self.said: dict[str, TokenRecord] = {}
        """What the last step drew or scored for each request, for who is in the same process."""

    def __call__(self, logits: Tensor, sampling_metadata: Any, **options: Any) -> SamplerOutput:
        """One token for every row whose prompt is through; the others' are thrown away by the runner."""
        batch = self._runner.input_batch
        is_discarded = self._runner.discard_request_mask.np[: len(batch.req_ids)].tolist()
        sequences = [self._sequence(request_id) for request_id in batch.req_ids]
        drawing = [row for row, s in enumerate(sequences) if not is_discarded[row] and not s.targets]
        scored = [row for row, s in enumerate(sequences) if not is_discarded[row] and s.targets]
        by_network = self._split(logits)
        numbers_RJ = torch.zeros(len(sequences), 3 + self._num_networks, dtype=torch.float64)
        if drawing:
            numbers_BJ = self._drawer.draw([sequences[row] for row in drawing], _rows(by_network, drawing)).numbers()
            if len(drawing) == len(sequences):
                numbers_RJ = numbers_BJ
            else:
                numbers_RJ[drawing] = numbers_BJ
        # The last token of a scored text is no part of vLLM's prompt: it is what follows, and takes a row of logits.
        chunks = [Chunk(sequences[row], sequences[row].num_tokens - 1, 1, False) for row in scored]
        for row, records in zip(scored, self._drawer.score(chunks, _rows(by_network, scored)), strict=True):
            token = records[-1]
            numbers_RJ[row] = torch.tensor([token.token_id, 0.0, 0.0, *token.logprobs], dtype=torch.float64)
        return self._output(batch.req_ids, numbers_RJ, wants_logprobs=sampling_metadata.max_num_logprobs is not None)

    def break_off(self) -> None:
        """Let the runner forget a step whose tokens were not drawn."""
        self._runner.execute_model_state = None

    def compute_logprobs(self, logits: Tensor) -> Tensor:
        """Every network's log-probabilities side by side."""
        return torch.cat([logprobs(logits_RV) for logits_RV in self._split(logits)], dim=-1)

    def gather_logprobs(self, logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> LogprobsTensors:
        """What each network says of one token a row, [R, K]."""
        token_R1 = token_ids[:, None]
        offsets_K = torch.arange(self._num_networks, device=logprobs.device) * self._vocab_size
        values_RK = logprobs.gather(-1, token_R1 + offsets_K)
        ids_RK = torch.cat([token_R1, self._slots(len(token_ids), self._num_networks - 1, logprobs.device)], dim=1)
        return LogprobsTensors(ids_RK.int(), values_RK, torch.zeros_like(token_ids))

    def _split(self, logits: Tensor) -> list[Tensor]:
        return list(torch.split(logits, self._vocab_size, dim=-1))

    def _sequence(self, request_id: str) -> Sequence:
        """The request as our drawing knows it, with the tokens that have been drawn so far."""
        request = self._runner.requests[request_id]
        sequence = self._sequences.get(request_id)
        if sequence is None:
            live = self._runner.requests
            self._sequences = {known: s for known, s in self._sequences.items() if known in live}
            wish = Wish.model_validate(request.sampling_params.extra_args[ARGUMENT])
            sequence = self._sequences[request_id] = wish.sequence(request_id, request.prompt_token_ids)
        if not sequence.targets:
            sequence.token_ids += request.output_token_ids[sequence.num_drawn :]
        return sequence

    def _output(self, names: list[str], numbers_RJ: Tensor, *, wants_logprobs: bool) -> SamplerOutput:
        """Tokens; beside each the mixture's and the networks' log-probabilities, and as its rank the head's size.

        What stands beside them is left out, and kept here, where nobody is to carry it into another process.
        """
        device = self._runner.device
        token_R1 = numbers_RJ[:, :1].int().to(device)
        if not wants_logprobs:
            self.said = dict(zip(names, token_records(numbers_RJ), strict=True))
            return SamplerOutput(token_R1, None)
        ids_RJ = torch.cat([token_R1, self._slots(len(numbers_RJ), self._num_networks, device).int()], dim=1)
        values_RJ = numbers_RJ[:, 2:].float().to(device)
        return SamplerOutput(token_R1, LogprobsTensors(ids_RJ, values_RJ, numbers_RJ[:, 1].long().to(device)))

    def _slots(self, num_rows: int, count: int, device: torch.device) -> Tensor:
        """Ids that no token has, under which vLLM keeps what stands beside a token apart."""
        ids = torch.arange(self._vocab_size, self._vocab_size + count, device=device)
        return ids.expand(num_rows, count)


def _rows(by_network: list[Tensor], rows: list[int]) -> list[Tensor]:
    """Some rows of every network's logits."""
    if len(rows) == len(by_network[0]):
        return by_network
    index = torch.tensor(rows, device=by_network[0].device, dtype=torch.int64)
    return [logits_RV[index] for logits_RV in by_network]


def _sampler_here(llm: LLMEngine) -> "MixingSampler | None":
    """Our sampler, where vLLM computes in this process."""
    executor = getattr(getattr(llm.engine_core, "engine_core", None), "model_executor", None)
    worker = getattr(getattr(executor, "driver_worker", None), "worker", None)
    sampler = getattr(getattr(worker, "model_runner", None), "sampler", None)
    return sampler if isinstance(sampler, MixingSampler) else None


def _unknown(holder: object, missing: list[str]) -> ConfigError:
    return ConfigError(
        f"vLLM's {type(holder).__qualname__} has no {', '.join(missing)}; the vLLM back end was tested with vLLM "
        f"{', '.join(TESTED_VERSIONS)}: install one of these"
    )
