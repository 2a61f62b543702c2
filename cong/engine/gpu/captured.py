"""Steps of a few fixed sizes, captured as CUDA graphs and replayed: one launch instead of thousands.

Knows tiles and tensors, no sequences.
"""

import logging
from dataclasses import dataclass

import torch

from cong.engine.gpu.block_tables import BlockTables
from cong.engine.gpu.decoding_graphs import DecodingGraphs, graph_sizes
from cong.engine.gpu.prompt_graphs import PromptGraphs
from cong.engine.gpu.recorder import Recorder
from cong.engine.gpu.tiles import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepLimits:
    """What a captured step holds at most."""

    max_rows: int
    """Sequences, and rows with logits."""
    max_tokens: int
    max_blocks: int
    """Of one sequence."""


class CapturedSteps:
    """Graphs of decoding, and of steps that hold prompts."""

    def __init__(self, run: Run, limits: StepLimits, device: torch.device) -> None:
        self.max_rows = graph_sizes(limits.max_rows)[-1]
        tables = BlockTables(self.max_rows, limits.max_blocks, device)
        recorder = Recorder(device)
        self.prompts = PromptGraphs(run, limits.max_tokens, tables, recorder, device)  # the larger ones first
        self.decoding = DecodingGraphs(run, tables, recorder, device)


def capture_steps(run: Run, limits: StepLimits, device: torch.device) -> CapturedSteps | None:
    """The graphs, or None, with a warning, where the networks' code cannot be captured."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    try:
        return CapturedSteps(run, limits, device)
    except RuntimeError as error:
        if stream is not None:  # a capture that fails leaves its own as the current one
            torch.cuda.set_stream(stream)
        logger.warning("steps are launched operator by operator, which is slower; capturing them failed: %s", error)
        return None
