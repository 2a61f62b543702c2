"""Our drawing in the place of vLLM's sampler, inside its workers: the one file that touches vLLM's internals.

What it relies on, in the versions that `TESTED_VERSIONS` names, checked before anything is served:
the model runner "V1" (`GPUModelRunner` and its CPU kin) draws by calling `self.sampler(logits=, sampling_metadata=)`,
rows of logits stand in the order of `input_batch.req_ids`, `requests[id]` keeps a request's parameters, prompt and
drawn tokens, `discard_request_mask` marks rows whose prompt is not through, and prompts are scored by the sampler's
`compute_logprobs` and `gather_logprobs`. Nothing of vLLM is patched: its runner is given another sampler.
Legend: R rows, K networks, V tokens of the shared vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from cong.config.engine import KernelChoice
from cong.decoding import logprobs
from cong.engine.cpu.library import has_kernel
from cong.engine.drawing import Drawer
from cong.engine.protocol import TokenRecord
from cong.engine.scheduler import Chunk
from cong.engine.sequence import Sequence
from cong.engine.vllm_backend.versions import TESTED_VERSIONS
from cong.engine.vllm_backend.wishes import ARGUMENT, Wish
from cong.errors import ConfigError

_NEEDED = ("sampler", "input_batch", "requests", "discard_request_mask", "device", "dtype")


class MixingWorker:
    """What vLLM adds to its worker class (`worker_extension_cls`), so that the engine can ask every worker for it."""

    model_runner: Any

    def draw_by_mixing(self, num_networks: int, vocab_size: int, kernel: KernelChoice) -> None:
        """Give the worker's model runner our sampler."""
        runner = self.model_runner
        missing = [name for name in _NEEDED if not hasattr(runner, name)]
        if missing or not hasattr(runner.sampler, "gather_logprobs"):
            raise ConfigError(
                f"vLLM's model runner {type(runner).__qualname__} has no {', '.join(missing) or 'gather_logprobs'}; "
                f"the vLLM back end was tested with vLLM {', '.join(TESTED_VERSIONS)}: install one of these"
            )
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

    def __call__(self, logits: Tensor, sampling_metadata: Any, **options: Any) -> SamplerOutput:
        """One token for every row whose prompt is through; the others' are thrown away by the runner."""
        batch = self._runner.input_batch
        is_discarded = self._runner.discard_request_mask.np
        sequences = [self._sequence(request_id) for request_id in batch.req_ids]
        drawing = [row for row, s in enumerate(sequences) if not is_discarded[row] and not s.targets]
        scored = [row for row, s in enumerate(sequences) if not is_discarded[row] and s.targets]
        by_network = self._split(logits)
        tokens = dict(
            zip(
                drawing,
                self._drawer.draw([sequences[row] for row in drawing], _rows(by_network, drawing)),
                strict=True,
            )
        )
        # The last token of a scored text is no part of vLLM's prompt: it is what follows, and takes a row of logits.
        chunks = [Chunk(sequences[row], sequences[row].num_tokens - 1, 1, False) for row in scored]
        for row, records in zip(scored, self._drawer.score(chunks, _rows(by_network, scored)), strict=True):
            tokens[row] = records[-1]
        return self._output(tokens, len(sequences))

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

    def _output(self, tokens: dict[int, TokenRecord], num_rows: int) -> SamplerOutput:
        """Tokens; beside each the mixture's and the networks' log-probabilities, and as its rank the head's size."""
        nothing = TokenRecord(0, (0.0,) * self._num_networks)
        records = [tokens.get(row, nothing) for row in range(num_rows)]
        device = self._runner.device
        token_R1 = torch.tensor([record.token_id for record in records], dtype=torch.int32, device=device)[:, None]
        values_RJ = torch.tensor([(record.mixture_logprob, *record.logprobs) for record in records], device=device)
        head_size_R = torch.tensor([record.head_size for record in records], device=device)
        ids_RJ = torch.cat([token_R1, self._slots(num_rows, self._num_networks, device).int()], dim=1)
        return SamplerOutput(token_R1, LogprobsTensors(ids_RJ, values_RJ.float(), head_size_R))

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
