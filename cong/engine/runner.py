"""The networks at work: tokens of a step in, logits out. Alone in knowing that there are several networks.

Stacks of networks run one after the other; all write their keys and values under the same block numbers. Legend: K
networks, S networks of a stack, N tokens of a step, R rows with logits, T sequences, C blocks, V tokens of the
vocabulary.
"""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import torch
from torch import Tensor

from cong.config.engine import KernelChoice
from cong.engine.attention import LayerShape, Layout, PagedAttention, route_attention
from cong.engine.cpu.attention import lay_out_for_kernel
from cong.engine.cpu.decoder import compile_decoder
from cong.engine.cpu.library import has_kernel
from cong.engine.gpu.captured import CapturedSteps, StepLimits, capture_steps
from cong.engine.gpu.compiled_layers import compile_layers
from cong.engine.gpu.tiles import has_tiles, lay_out_tiles
from cong.engine.grouping import build_stacks
from cong.engine.plain.layout import lay_out_plainly
from cong.engine.pool import places_of
from cong.engine.scheduler import Chunk
from cong.engine.transfer import select_rows, to_device
from cong.models import Network


@dataclass(frozen=True)
class Logits:
    """What a step's logits are for; one [R, V] tensor per network each."""

    drawing: tuple[Tensor, ...]
    """The last row of every chunk that draws."""
    scored: tuple[Tensor, ...]
    """The rows before every token that is scored."""

    def drawn_by(self, rows: list[int]) -> "Logits":
        """Those of some chunks of a step in which all draw."""
        return Logits(tuple(select_rows(z, rows) for z in self.drawing), self.scored)


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


def _token_ids(chunks: Ordered[Chunk]) -> list[int]:
    """Of all tokens that the sequences know."""
    return [
        token_id for chunk in chunks for token_id in chunk.sequence.token_ids[chunk.start : chunk.start + chunk.count]
    ]


class Runner:
    """K networks and their pools; `prepare` gives the pools their size once it is known."""

    def __init__(
        self,
        networks: Ordered[Network],
        *,
        stacks_networks: bool = True,
        kernel: KernelChoice = "auto",
        compiles_layers: bool = False,
        joins_products: bool = False,
    ) -> None:
        self.num_networks = len(networks)
        self.device = networks[0].device
        self.dtype = networks[0].dtype
        self.has_tiles = has_tiles(kernel, self.device)
        self.has_kernel = not self.has_tiles and has_kernel(kernel, self.device, self.dtype)
        self.stacks = build_stacks(networks, stacks_networks=stacks_networks, joins_products=joins_products)
        self._block_size = 0
        self._captured: CapturedSteps | None = None
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
    def prepare(self, num_blocks: int, block_size: int, captured: StepLimits | None = None) -> None:
        """Allocate the pools of every stack; on a GPU, capture steps of up to so many rows and tokens."""
        self._block_size = block_size
        for stack in self.stacks:
            like = torch.empty(0, dtype=self.dtype, device=self.device)
            stack.attention = PagedAttention(stack.probe, len(stack.indices), num_blocks, block_size, like)
            if self.has_kernel:
                stack.compiled = compile_decoder(stack.model, stack.probe, len(stack.indices))
            route_attention(stack.model, stack.attention)
        if self.has_tiles and captured is not None:
            self._captured = capture_steps(self._run, captured, self.device)

    @torch.inference_mode()
    def forward(self, chunks: Ordered[Chunk], token_B: Tensor | None = None) -> Logits:
        """Compute the chunks, those of one token first, and return the logits that they are computed for.

        They stay until the next call. `token_B` gives chunks of one token theirs before the sequences know them.
        """
        drawing, scored = _logit_rows(chunks)
        rows, num_drawing = drawing + scored, len(drawing)
        every = self._replay(chunks, rows, token_B) or self._run_chunks(chunks, rows, token_B)
        return Logits(tuple(z[:num_drawing] for z in every), tuple(z[num_drawing:] for z in every))

    def _replay(self, chunks: Ordered[Chunk], rows: list[int], token_B: Tensor | None) -> tuple[Tensor, ...]:
        """Logits of a step that is captured; none if this one is not."""
        if self._captured is None or len(chunks) > self._captured.max_rows:
            return ()
        tables, starts = [chunk.sequence.blocks for chunk in chunks], [chunk.start for chunk in chunks]
        if chunks[-1].count > 1:
            return self._captured.prompts.replay(
                _token_ids(chunks), starts, [chunk.count for chunk in chunks], tables, rows
            )
        every = self._captured.decoding.replay(_token_ids(chunks) if token_B is None else token_B, starts, tables)
        return every if rows == list(range(len(chunks))) else tuple(z[self._tensor(rows)] for z in every)

    def _run_chunks(self, chunks: Ordered[Chunk], rows: list[int], token_B: Tensor | None) -> tuple[Tensor, ...]:
        """Logits of a step, operator by operator."""
        known_N, position_ids_N, layout = self._lay_out(chunks)
        laid_out = known_N if token_B is None else token_B, position_ids_N, layout
        if not self._compiles_layers:
            return self._run(*laid_out, self._tensor(rows))
        # Steps come in every size here, and for some of them torch would compile again.
        with torch.compiler.set_stance("force_eager"):
            return self._run(*laid_out, self._tensor(rows))

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

    def _lay_out(self, chunks: Ordered[Chunk]) -> tuple[Tensor, Tensor, Layout]:
        """Token ids, positions and places of a step's tokens."""
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.start + chunk.count)]
        places_TC = places_of([chunk.sequence.blocks for chunk in chunks])
        starts, counts = [chunk.start for chunk in chunks], [chunk.count for chunk in chunks]
        layout: Layout
        if self.has_tiles:
            layout = lay_out_tiles(places_TC, starts, counts, self.device)
        elif self.has_kernel:
            layout = lay_out_for_kernel(places_TC, starts, counts)
        else:
            num_decoding = next((n for n, count in enumerate(counts) if count != 1), len(counts))
            layout = lay_out_plainly(places_TC, starts, counts, num_decoding, self._block_size, self.device)
        return self._tensor(_token_ids(chunks)), self._tensor(positions), layout

    def _tensor(self, numbers: list[int]) -> Tensor:
        return to_device(torch.tensor(numbers, dtype=torch.int64), self.device)
