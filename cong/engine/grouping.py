"""Networks of identical shape as one stack, others each as its own; all compared with the networks' own answers.

Legend: S networks of a stack, N tokens of a step, R rows with logits, V tokens of the vocabulary.
"""

import logging
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cong.engine.attention import (
    ATTENTION_NAME,
    LayerProbe,
    PagedAttention,
    dispatch_attention,
    route_attention,
)
from cong.engine.cpu.decoder import CompiledDecoder
from cong.engine.gpu.joined import join_products
from cong.engine.stack import can_stack, stack_models
from cong.errors import ModelError, UnsupportedModel
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


@torch.inference_mode()
def build_stacks(networks: Ordered[Network], *, stacks_networks: bool, joins_products: bool = False) -> list[Stack]:
    """Group networks of identical shape; each group's answers are checked against the networks' own."""
    generator = torch.Generator().manual_seed(0)
    width = min(network.architecture.vocab_width for network in networks)
    token_ids_N = torch.randint(width, (_PROBE_TOKENS,), generator=generator).to(networks[0].device)
    for network in networks:
        use_attention(network, "eager")  # the one that knows everything the network asks of attention
    own = [_own_logits(network, token_ids_N) for network in networks]
    for network, logits_NV in zip(networks, own, strict=True):
        if not logits_NV.isfinite().all():
            raise ModelError(
                f"{network.name} answers with logits that are not finite; its weights are damaged, or models.dtype, "
                f"{str(network.dtype).removeprefix('torch.')}, is too narrow for it"
            )
    register_attention(ATTENTION_NAME, dispatch_attention)
    groups: list[list[int]] = []
    for index, network in enumerate(networks):
        use_attention(network, ATTENTION_NAME)
        twin = next((g for g in groups if stacks_networks and can_stack([networks[g[0]].model, network.model])), None)
        if twin is None:
            groups.append([index])
        else:
            twin.append(index)

    def attempt(group: list[int], *, joins: bool) -> Stack | None:
        models = [networks[index].model for index in group]
        others = [network.model for index, network in enumerate(networks) if index not in group]
        model = stack_models(models) if len(models) > 1 else models[0]
        if joins:
            route_attention(model, _attend_without_notes)
            model = join_products(model, models, others, lambda: _probe_logits(model, len(group), token_ids_N))
        stack = _probe_stack(model, group, token_ids_N)
        logits_SNV = _probe_logits(stack.model, len(group), token_ids_N)
        return stack if all(_agree(logits_SNV[k], own[index]) for k, index in enumerate(group)) else None

    def build(group: list[int]) -> Stack | None:
        """A stack that answers as its networks do, or None."""
        if joins_products:
            reason: object = "they answer differently"
            try:
                stack = attempt(group, joins=True)
                if stack is not None:
                    return stack
            except RuntimeError as error:  # modelling code that asks for a layout which parts do not have
                reason = error
            logger.warning("products of one input are computed one by one in networks %s: joined, %s", group, reason)
        return attempt(group, joins=False)

    stacks: list[Stack] = []
    for group in groups:
        stack = build(group)
        if stack is not None:
            stacks.append(stack)
            continue
        logger.warning("networks %s answer differently when stacked; they run one after the other", group)
        for index in group:
            alone = build([index])
            if alone is None:
                raise UnsupportedModel(
                    f"{networks[index].name} answers differently through paged attention than by itself; it "
                    "cannot be served by this engine"
                )
            stacks.append(alone)
    return stacks


def _own_logits(network: Network, token_ids_N: Tensor) -> Tensor:
    """What a network says by itself: [N, V]."""
    model: Any = network.model
    logits: Tensor = model(input_ids=token_ids_N[None], use_cache=False).logits[0]
    return logits


def _probe_stack(model: nn.Module, indices: list[int], token_ids_N: Tensor) -> Stack:
    probe = LayerProbe()
    route_attention(model, probe)
    _probe_logits(model, len(indices), token_ids_N)
    if not probe.modules:
        raise UnsupportedModel(f"{type(model).__name__} does not use the attention interface; it cannot be paged")
    route_attention(model, _attend_without_notes)
    return Stack(model, tuple(indices), probe)


def _probe_logits(model: nn.Module, size: int, token_ids_N: Tensor) -> Tensor:
    position_ids_N = torch.arange(len(token_ids_N), device=token_ids_N.device)
    return Stack(model, tuple(range(size)), LayerProbe()).logits(token_ids_N, position_ids_N, position_ids_N)


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    scale = theirs.float().abs().amax().clamp(min=1e-6)
    return bool((ours.float() - theirs.float()).abs().amax() <= _TOLERANCE[theirs.dtype] * scale)


def _attend_without_notes(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """As a probe attends, for further passes before the pools exist."""
    return LayerProbe()(module, query, key, value, **options)
