"""Decoders whose layers are of the common kind, through one operator of our own per layer.

The kind: norm, attention with rotated queries and keys, norm, gated feed-forward, each added to what came in, as in
Llama, Mistral, Qwen 2 and 3 and Phi-3. A network is recognised by the modules it has, never by name, and every layer's
answers are compared with those of its own modelling code before the operators are used. Embedding and angles stay the
network's own. Legend: S networks of a stack, N tokens of a step, R rows with logits, V tokens of the vocabulary, I and
O widths of a product.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cong.engine.attention import LayerProbe, PagedAttention
from cong.engine.cpu.attention import KernelLayout, lay_out_for_kernel
from cong.engine.pool import LayerPool, Options, places_of
from cong.engine.stack import STACKED, StackedLinear, StackedNorm

logger = logging.getLogger(__name__)

_NUM_TOKENS, _BLOCK_SIZE = 24, 16
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Largest difference of what a layer adds, as a share of the largest number it adds."""
_NORM_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}

_SEPARATE = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
_SEPARATE |= {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
_MERGED = {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"}
_NORMS = {"input_layernorm", "post_attention_layernorm"}
_HEAD_NORMS = {"self_attn.q_norm", "self_attn.k_norm"}


@dataclass(frozen=True)
class _Linear:
    """S linear maps."""

    weight_SIO: Tensor
    bias_SO: Tensor | None

    def part(self, start: int, width: int) -> "_Linear":
        """Some of the outputs."""
        bias_SO = None if self.bias_SO is None else self.bias_SO[:, start : start + width].contiguous()
        return _Linear(self.weight_SIO[:, :, start : start + width], bias_SO)


@dataclass(frozen=True)
class _Norm:
    """S root-mean-square norms."""

    weight_SI: Tensor
    eps: float


@dataclass(frozen=True)
class _Layer:
    """One layer's weights in the operator's order, and what it asks of its attention."""

    weights: list[Tensor | None]
    options: Options
    eps: float

    def __call__(self, hidden_SNI: Tensor, angles: tuple[Tensor, Tensor], pool: LayerPool, rows: KernelLayout) -> None:
        """Add to the hidden rows, in place, what the layer adds."""
        torch.ops.cong.decoder_layer(
            hidden_SNI,
            *angles,
            self.weights,
            pool.keys,
            pool.values,
            rows.places_TC,
            rows.sequences_N,
            rows.positions_N,
            self.options.scaling,
            self.options.window or 0,
            self.eps,
        )


class CompiledDecoder:
    """A stack of networks through the operators."""

    def __init__(self, model: Any, num_networks: int, layers: list[_Layer], norm: _Norm, head: _Linear) -> None:
        self._body = model.model
        self._num_networks = num_networks
        self._layers = layers
        self._norm = norm
        self._head = head

    def logits(self, token_ids_N: Tensor, position_ids_N: Tensor, rows_R: Tensor, attention: PagedAttention) -> Tensor:
        """[S, R, V] in float32."""
        rows = attention.layout
        assert isinstance(rows, KernelLayout), "the kernels have a layout of their own"
        hidden_SNI = self._body.embed_tokens(token_ids_N.expand(self._num_networks, -1)).float().contiguous()
        angles = self.angles(position_ids_N)
        for layer, pool in zip(self._layers, attention.pools, strict=True):
            layer(hidden_SNI, angles, pool, rows)
        return self.answer(hidden_SNI, rows_R)

    def answer(self, hidden_SNI: Tensor, rows_R: Tensor) -> Tensor:
        """The logits of some rows that all layers have seen."""
        logits_SRV: Tensor = torch.ops.cong.decoder_head(
            hidden_SNI, rows_R, self._norm.weight_SI, self._head.weight_SIO, self._head.bias_SO, self._norm.eps
        )
        return logits_SRV

    def angles(self, position_ids_N: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position, as the network's own module has them."""
        like = torch.empty(0, device=position_ids_N.device)
        cosine, sine = self._body.rotary_emb(like, position_ids_N[None])
        return cosine[0].contiguous(), sine[0].contiguous()

    def first_difference(self, model: nn.Module, token_ids_N: Tensor, pools: list[LayerPool]) -> str | None:
        """The first part that answers differently from the network's own code; None = all agree."""
        position_ids_N = torch.arange(len(token_ids_N))
        ids_SN, positions_SN = (ids.expand(self._num_networks, -1) for ids in (token_ids_N, position_ids_N))
        with _noting(self._body.layers) as notes:
            own_logits = model(input_ids=ids_SN, position_ids=positions_SN, use_cache=False).logits
        num_blocks = -(-len(token_ids_N) // _BLOCK_SIZE)
        rows = lay_out_for_kernel(places_of([range(num_blocks)]), [0], [len(token_ids_N)])
        angles = self.angles(position_ids_N)
        tolerance = _TOLERANCE[own_logits.dtype]
        for number, (layer, pool, (before, after)) in enumerate(zip(self._layers, pools, notes, strict=True)):
            hidden = before.float().clone(memory_format=torch.contiguous_format)
            layer(hidden, angles, pool, rows)
            if not _agree(hidden - before.float(), after.float() - before.float(), tolerance):
                return f"layer {number}"
        if not _agree(self.answer(notes[-1][1].float().contiguous(), position_ids_N), own_logits.float(), tolerance):
            return "the head"
        embedded = self._body.embed_tokens(ids_SN)
        return None if torch.equal(embedded, notes[0][0]) else "the embedding"


def compile_decoder(model: Any, probe: LayerProbe, num_networks: int) -> CompiledDecoder | None:
    """The networks through the operators, or None where they are not of the kind or answer differently."""
    decoder = _recognise(model, probe, num_networks)
    if decoder is None:
        return None
    generator = torch.Generator().manual_seed(1)
    token_ids_N = torch.randint(model.config.vocab_size, (_NUM_TOKENS,), generator=generator)
    dtype = next(model.parameters()).dtype
    size = (-(-_NUM_TOKENS // _BLOCK_SIZE) + 1, num_networks, _BLOCK_SIZE)
    pools = [
        LayerPool(
            torch.zeros(size[0], num_networks * shape.num_kv_heads, _BLOCK_SIZE, shape.key_width, dtype=dtype),
            torch.zeros(size[0], num_networks * shape.num_kv_heads, _BLOCK_SIZE, shape.value_width, dtype=dtype),
        )
        for shape in probe.shapes
    ]
    different = decoder.first_difference(model, token_ids_N, pools)
    if different is not None:
        logger.warning(
            "%s has layers of the known kind, and %s answers differently through the compiled ones; it runs through "
            "its own modelling code, which is slower",
            type(model).__name__,
            different,
        )
        return None
    return decoder


def _recognise(model: Any, probe: LayerProbe, num_networks: int) -> CompiledDecoder | None:
    """The weights of a network of the kind, or None."""
    body = getattr(model, "model", None)
    parts = [getattr(body, name, None) for name in ("embed_tokens", "layers", "norm", "rotary_emb")]
    if not all(isinstance(part, nn.Module) for part in [*parts, getattr(model, "lm_head", None)]):
        return None
    assert body is not None, "it has parts"
    known = {"lm_head", "model.embed_tokens", "model.norm"}
    if any(name not in known and not name.startswith("model.layers.") for name in _holders(model)):
        return None
    if len(body.layers) != len(probe.options):
        return None
    layers = [
        _recognise_layer(layer, options, shape.key_width, num_networks)
        for layer, options, shape in zip(body.layers, probe.options, probe.shapes, strict=True)
    ]
    norm, head = _norm(body.norm, num_networks), _linear(model.lm_head, num_networks)
    found = [layer for layer in layers if layer is not None]
    if len(found) < len(layers) or norm is None or head is None:
        return None
    return CompiledDecoder(model, num_networks, found, norm, head)


def _recognise_layer(layer: Any, options: Options, head_width: int, num_networks: int) -> _Layer | None:
    names = _holders(layer)
    head_norms = names & _HEAD_NORMS
    is_merged = names - head_norms == _MERGED | _NORMS
    if not (is_merged or names - head_norms == _SEPARATE | _NORMS) or head_norms not in (set(), _HEAD_NORMS):
        return None
    if options.softcap is not None or not _is_silu(layer.mlp):
        return None
    maps = {name: _linear(layer.get_submodule(name), num_networks) for name in names - _NORMS - _HEAD_NORMS}
    norms = {name: _norm(layer.get_submodule(name), num_networks) for name in names & (_NORMS | _HEAD_NORMS)}
    linear = {name: found for name, found in maps.items() if found is not None}
    norm = {name: found for name, found in norms.items() if found is not None}
    if len(linear) < len(maps) or len(norm) < len(norms) or len({found.eps for found in norm.values()}) > 1:
        return None
    out, down = linear["self_attn.o_proj"], linear["mlp.down_proj"]
    if is_merged:
        query_width = out.weight_SIO.shape[1]
        merged, gate_up = linear["self_attn.qkv_proj"], linear["mlp.gate_up_proj"]
        key_width = (merged.weight_SIO.shape[2] - query_width) // 2
        query, key = merged.part(0, query_width), merged.part(query_width, key_width)
        value, half = merged.part(query_width + key_width, key_width), gate_up.weight_SIO.shape[2] // 2
        gate, up = gate_up.part(0, half), gate_up.part(half, half)
    else:
        query, key, value = (linear[f"self_attn.{name}_proj"] for name in ("q", "k", "v"))
        gate, up = linear["mlp.gate_proj"], linear["mlp.up_proj"]
    if head_width % 2 or key.weight_SIO.shape[2] != value.weight_SIO.shape[2]:
        return None
    before, after = norm["input_layernorm"], norm["post_attention_layernorm"]
    products = (query, key, value, out), (gate, up, down)
    weights: list[Tensor | None] = [before.weight_SI, *(p.weight_SIO for p in products[0]), after.weight_SI]
    weights += [p.weight_SIO for p in products[1]]
    weights += [p.bias_SO for p in (*products[0], *products[1])]
    weights += [norm[name].weight_SI if name in norm else None for name in ("self_attn.q_norm", "self_attn.k_norm")]
    return _Layer(weights, options, before.eps)


def _holders(model: nn.Module, path: str = "") -> set[str]:
    """Paths of the modules that hold weights; a stacked one is one, whatever it is made of."""
    if isinstance(model, STACKED) or next(model.parameters(recurse=False), None) is not None:
        return {path}
    children = ((f"{path}.{name}" if path else name, child) for name, child in model.named_children())
    return {holder for name, child in children for holder in _holders(child, name)}


def _linear(module: nn.Module, num_networks: int) -> _Linear | None:
    if type(module) is StackedLinear:
        bias_SO = None if module.bias_S1O is None else module.bias_S1O[:, 0].float().contiguous()
        return _Linear(module.weight_SIO, bias_SO)
    if type(module) is nn.Linear and num_networks == 1:
        return _Linear(module.weight.t()[None], None if module.bias is None else module.bias[None].float())
    return None


def _norm(module: Any, num_networks: int) -> _Norm | None:
    """The norm, if it is what the operator computes."""
    own = module.norm if type(module) is StackedNorm else module
    eps = getattr(own, "variance_epsilon", getattr(own, "eps", None))
    weight = getattr(own, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, Tensor) or (own is module and num_networks > 1):
        return None
    norm = _Norm((module.weight_SI if own is not module else weight[None]).float(), eps)
    generator = torch.Generator().manual_seed(2)
    # Numbers so small that a wrong epsilon shows.
    hidden_SNI = (torch.randn(num_networks, 4, norm.weight_SI.shape[1], generator=generator) * 1e-2).to(weight.dtype)
    wide = hidden_SNI.float()
    ours = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * norm.weight_SI[:, None]
    return norm if _agree(ours, module(hidden_SNI).float(), _NORM_TOLERANCE[weight.dtype]) else None


def _is_silu(mlp: Any) -> bool:
    activation = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    inputs = torch.linspace(-8.0, 8.0, 101)
    return activation is not None and torch.allclose(activation(inputs), nn.functional.silu(inputs), atol=1e-5)


def _agree(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return bool((ours - theirs).abs().amax() <= tolerance * theirs.abs().amax())


@contextmanager
def _noting(layers: nn.ModuleList) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What goes into each layer and comes out of it."""
    notes: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, arguments: Any, options: Any, output: Any) -> None:
        before = arguments[0] if arguments else options["hidden_states"]
        notes.append((before, output if isinstance(output, Tensor) else output[0]))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield notes
    finally:
        for handle in handles:
            handle.remove()
