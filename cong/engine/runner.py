"""The networks at work: tokens of a step in, logits out. Alone in knowing that there are several networks.

Networks of identical shape run as one stacked module, others one after the other; all write their keys and values
under the same block numbers. Legend: K networks, S networks of a stack, N tokens of a step, R rows with logits,
V tokens of the vocabulary.
"""

import logging
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cong.config.engine import KernelChoice
from cong.engine.attention import (
    ATTENTION_NAME,
    Decoding,
    LayerProbe,
    LayerShape,
    Layout,
    PagedAttention,
    Prefill,
    StepLayout,
    dispatch_attention,
    route_attention,
)
from cong.engine.cpu.decoder import CompiledDecoder, compile_decoder
from cong.engine.cpu.library import has_kernel, lay_out_for_kernel
from cong.engine.gpu.captured import CapturedDecoding, capture_decoding
from cong.engine.gpu.compiled_layers import compile_layers
from cong.engine.gpu.tiles import has_tiles, lay_out_tiles
from cong.engine.plain.sweep import lay_out_sweep
from cong.engine.pool import places_of
from cong.engine.scheduler import Chunk
from cong.engine.stack import can_stack, stack_models
from cong.errors import UnsupportedModel
from cong.models import Network, register_attention, use_attention

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 24
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference between two ways to compute the same logits, as a share of the largest logit."""


@dataclass
class Stack:
    """Networks that run in one pass, and their attention."""

    model: nn.Module
    indices: tuple[int, ...]
    """Which of the deployment's networks these are."""
    probe: LayerProbe
    attention: PagedAttention | None = None
    compiled: CompiledDecoder | None = None
    """The same networks through operators of our own, where their layers are of a known kind."""

    def logits(self, token_ids_N: Tensor, position_ids_N: Tensor, rows_R: Tensor | None) -> Tensor:
        """Logits of the rows, or of all: [S, R, V]"""
        if self.compiled is not None and self.attention is not None and rows_R is not None:
            return self.compiled.logits(token_ids_N, position_ids_N, rows_R, self.attention)
        size = len(self.indices)
        model: Any = self.model
        logits: Tensor = model(
            input_ids=token_ids_N.expand(size, -1),
            position_ids=position_ids_N.expand(size, -1),
            use_cache=False,
            logits_to_keep=0 if rows_R is None else rows_R,
        ).logits
        return logits


@dataclass(frozen=True)
class Logits:
    """What a step's logits are for; one [R, V] tensor per network each."""

    drawing: tuple[Tensor, ...]
    """The last row of every chunk that draws."""
    scored: tuple[Tensor, ...]
    """The rows before every token that is scored."""


def _logit_rows(chunks: Ordered[Chunk]) -> tuple[list[int], list[int]]:
    """Rows of the step whose logits draw a token, and those whose logits score one."""
    drawing: list[int] = []
    scored: list[int] = []
    start = 0
    for chunk in chunks:
        if chunk.draws:
            drawing.append(start + chunk.count - 1)
        elif chunk.sequence.targets:
            num_scored = chunk.scored.stop - chunk.scored.start
            scored += range(start + chunk.count - num_scored, start + chunk.count)
        start += chunk.count
    return drawing, scored


def _probe_logits(model: nn.Module, size: int, token_ids_N: Tensor) -> Tensor:
    position_ids_N = torch.arange(len(token_ids_N), device=token_ids_N.device)
    return Stack(model, tuple(range(size)), LayerProbe()).logits(token_ids_N, position_ids_N, position_ids_N)


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    scale = theirs.float().abs().amax().clamp(min=1e-6)
    return bool((ours.float() - theirs.float()).abs().amax() <= _TOLERANCE[theirs.dtype] * scale)


class Runner:
    """K networks and their pools; `prepare` gives the pools their size once it is known."""

    def __init__(
        self,
        networks: Ordered[Network],
        *,
        stacks_networks: bool = True,
        kernel: KernelChoice = "auto",
        compiles_layers: bool = False,
    ) -> None:
        self.num_networks = len(networks)
        self.device = networks[0].device
        self.dtype = networks[0].dtype
        self.has_tiles = has_tiles(kernel, self.device)
        self.has_kernel = not self.has_tiles and has_kernel(kernel, self.device, self.dtype)
        self.stacks = self._build_stacks(networks, stacks_networks)
        self._block_size = 0
        self._captured: CapturedDecoding | None = None
        self._compiles_layers = compiles_layers
        if compiles_layers:
            for stack in self.stacks:
                compile_layers(stack.model, stack.probe.modules)

    @property
    def cached_share(self) -> float:
        """Share of the blocks that may lie idle with a known prefix: few where attention sweeps over all of them."""
        return 0.05 if self.device.type == "cpu" and not self.has_kernel else 1.0

    @property
    def layer_shapes(self) -> list[LayerShape]:
        """What every layer of every network keeps per token."""
        return [shape for stack in self.stacks for shape in stack.probe.shapes * len(stack.indices)]

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token's keys and values in all networks."""
        return sum(shape.num_values for shape in self.layer_shapes) * self.dtype.itemsize

    @torch.inference_mode()
    def _build_stacks(self, networks: Ordered[Network], stacks_networks: bool) -> list[Stack]:
        """Group networks of identical shape; each group's answers are checked against the networks' own."""
        generator = torch.Generator().manual_seed(0)
        width = min(network.architecture.vocab_width for network in networks)
        token_ids_N = torch.randint(width, (_PROBE_TOKENS,), generator=generator).to(self.device)
        for network in networks:
            use_attention(network, "eager")  # the one that knows everything the network asks of attention
        own = [self._own_logits(network, token_ids_N) for network in networks]
        register_attention(ATTENTION_NAME, dispatch_attention)
        groups: list[list[int]] = []
        for index, network in enumerate(networks):
            use_attention(network, ATTENTION_NAME)
            twin = next(
                (g for g in groups if stacks_networks and can_stack([networks[g[0]].model, network.model])), None
            )
            if twin is None:
                groups.append([index])
            else:
                twin.append(index)
        stacks: list[Stack] = []
        for group in groups:
            stack = self._build_stack([networks[index].model for index in group], group, token_ids_N)
            logits_SNV = _probe_logits(stack.model, len(group), token_ids_N)
            if all(_agree(logits_SNV[k], own[index]) for k, index in enumerate(group)):
                stacks.append(stack)
                continue
            logger.warning("networks %s answer differently when stacked; they run one after the other", group)
            for index in group:
                stack = self._build_stack([networks[index].model], [index], token_ids_N)
                if not _agree(_probe_logits(stack.model, 1, token_ids_N)[0], own[index]):
                    raise UnsupportedModel(
                        f"{networks[index].name} answers differently through paged attention than by itself; it "
                        "cannot be served by this engine"
                    )
                stacks.append(stack)
        return stacks

    def _own_logits(self, network: Network, token_ids_N: Tensor) -> Tensor:
        """What a network says by itself: [N, V]."""
        model: Any = network.model
        logits: Tensor = model(input_ids=token_ids_N[None], use_cache=False).logits[0]
        return logits

    def _build_stack(self, models: list[nn.Module], indices: list[int], token_ids_N: Tensor) -> Stack:
        model = stack_models(models) if len(models) > 1 else models[0]
        probe = LayerProbe()
        route_attention(model, probe)
        _probe_logits(model, len(models), token_ids_N)
        if not probe.modules:
            raise UnsupportedModel(f"{type(model).__name__} does not use the attention interface; it cannot be paged")
        route_attention(model, _forgetful(probe))
        return Stack(model, tuple(indices), probe)

    @torch.inference_mode()
    def prepare(self, num_blocks: int, block_size: int, *, captured_rows: int = 0, max_blocks: int = 0) -> None:
        """Allocate the pools of every stack; on a GPU, capture the decoding of up to `captured_rows` sequences.

        None of them ever has more than `max_blocks` blocks.
        """
        self._block_size = block_size
        for stack in self.stacks:
            like = torch.empty(0, dtype=self.dtype, device=self.device)
            stack.attention = PagedAttention(stack.probe, len(stack.indices), num_blocks, block_size, like)
            if self.has_kernel:
                stack.compiled = compile_decoder(stack.model, stack.probe, len(stack.indices))
            route_attention(stack.model, stack.attention)
        if self.has_tiles and captured_rows:
            self._captured = capture_decoding(self._run_all, captured_rows, max_blocks, self.device)

    @torch.inference_mode()
    def forward(self, chunks: Ordered[Chunk]) -> Logits:
        """Compute the chunks, those of one token first, and return the logits that they are computed for."""
        drawing, scored = _logit_rows(chunks)
        rows, num_drawing = drawing + scored, len(drawing)
        every = self._replay(chunks, rows) or self._run_chunks(chunks, rows)
        return Logits(tuple(z[:num_drawing] for z in every), tuple(z[num_drawing:] for z in every))

    def _replay(self, chunks: Ordered[Chunk], rows: list[int]) -> tuple[Tensor, ...]:
        """Logits of a step that is captured; none if this one is not."""
        if self._captured is None or len(chunks) > self._captured.max_rows or chunks[-1].count != 1:
            return ()
        token_ids = [chunk.sequence.token_ids[chunk.start] for chunk in chunks]
        tables = [chunk.sequence.blocks for chunk in chunks]
        every = self._captured.replay(token_ids, [chunk.start for chunk in chunks], tables)
        return every if rows == list(range(len(chunks))) else tuple(z[self._tensor(rows)] for z in every)

    def _run_chunks(self, chunks: Ordered[Chunk], rows: list[int]) -> tuple[Tensor, ...]:
        """Logits of a step, operator by operator."""
        laid_out = self._lay_out(chunks, self._block_size)
        if not self._compiles_layers:
            return self._run(*laid_out, self._tensor(rows))
        # Steps that hold prompts come in every size, and for some of them torch would compile again.
        with torch.compiler.set_stance("force_eager"):
            return self._run(*laid_out, self._tensor(rows))

    def _run_all(self, token_ids_N: Tensor, position_ids_N: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        return self._run(token_ids_N, position_ids_N, layout, None)

    def _run(
        self, token_ids_N: Tensor, position_ids_N: Tensor, layout: Layout, rows_R: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Logits of every network for the given rows, or for all."""
        by_network: dict[int, Tensor] = {}
        for stack in self.stacks:
            assert stack.attention is not None, "prepare comes before a step"
            stack.attention.layout = layout
            logits_SRV = stack.logits(token_ids_N, position_ids_N, rows_R)
            by_network |= {index: logits_SRV[k] for k, index in enumerate(stack.indices)}
        return tuple(by_network[index] for index in range(self.num_networks))

    def _lay_out(self, chunks: Ordered[Chunk], block_size: int) -> tuple[Tensor, Tensor, Layout]:
        """Token ids, positions and places of a step's tokens."""
        num_decoding = next((n for n, chunk in enumerate(chunks) if chunk.count != 1), len(chunks))
        token_ids: list[int] = []
        positions: list[int] = []
        for chunk in chunks:
            stop = chunk.start + chunk.count
            token_ids += chunk.sequence.token_ids[chunk.start : stop]
            positions += range(chunk.start, stop)
        if self.has_tiles or self.has_kernel:
            places_TC = places_of([chunk.sequence.blocks for chunk in chunks])
            starts, counts = [chunk.start for chunk in chunks], [chunk.count for chunk in chunks]
            by_kernel: Layout = (
                lay_out_tiles(places_TC, starts, counts, num_decoding, self.device)
                if self.has_tiles
                else lay_out_for_kernel(places_TC, starts, counts)
            )
            return self._tensor(token_ids), self._tensor(positions), by_kernel
        prefills: list[Prefill] = []
        places: list[int] = []
        row = num_decoding
        for chunk in chunks[num_decoding:]:
            self._add_prefill(prefills, row, chunk)
            blocks = chunk.sequence.blocks
            places += [blocks[position // block_size] + 1 for position in positions[row : row + chunk.count]]
            row += chunk.count
        layout = StepLayout(
            num_decoding=num_decoding,
            decoding=self._lay_out_decoding(chunks[:num_decoding], block_size) if num_decoding else None,
            prefills=tuple(prefills),
            places_N=self._tensor(places),
            offsets_N=self._tensor([position % block_size for position in positions[num_decoding:]]),
        )
        return self._tensor(token_ids), self._tensor(positions), layout

    def _lay_out_decoding(self, chunks: Ordered[Chunk], block_size: int) -> Decoding:
        places = places_of([chunk.sequence.blocks for chunk in chunks])
        return lay_out_sweep(places, [chunk.start + 1 for chunk in chunks], block_size, self.device)

    def _tensor(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def _add_prefill(self, prefills: list[Prefill], row: int, chunk: Chunk) -> None:
        """One more chunk to attend; neighbours of equal length without context attend together."""
        if chunk.start > 0:
            blocks = self._tensor([block + 1 for block in chunk.sequence.blocks])
            prefills.append(Prefill(row, 1, chunk.count, blocks, chunk.start + chunk.count))
            return
        last = prefills[-1] if prefills else None
        if last is not None and last.context_blocks is None and last.count == chunk.count:
            prefills[-1] = Prefill(last.start, last.num_sequences + 1, last.count, None)
        else:
            prefills.append(Prefill(row, 1, chunk.count, None))


def _forgetful(probe: LayerProbe) -> Any:
    """The probe's attention without its notes, for further passes before the pools exist."""

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        return LayerProbe()(module, query, key, value, **options)

    return attend
