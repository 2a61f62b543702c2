"""Sequences behind one another in one row, each seeing itself alone: the attention function, and where they lie.

A packed row costs its own sequences, none of which sees another: on a CUDA device one kernel takes the whole row with
the places where sequences begin, elsewhere attention is computed in groups of sequences of similar length. Registered
under a name of its own; networks whose attention it cannot compute are found by comparing (`trainee.py`).
Legend: T tokens of the row, Q query heads, H key-value heads, D head width, S sequences of a group, L their longest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from cong.errors import UnsupportedModel

ATTENTION_NAME = "cong_packed"

LAYOUT = "packed_layout"
"""Keyword under which a network hands the layout through to its attention."""

_SHORT = 64
"""Up to this length padding costs less than another call."""
_SIMILAR = 0.75
"""Above it, sequences of a group are at least this share of its longest."""
_ALONE_ON_CPU = 96
"""There a call is cheap: of sequences that are longer, padding a few costs more than a call for each."""

_WIDEST_HEAD = 256
"""Of the kernel for whole rows."""
_LEAST_BOUND = 128
"""The longest sequence is told to the kernel as this or a power of two above it: a bound is all that it needs."""

_KNOWN_OPTIONS = frozenset(
    {"scaling", "dropout", "sliding_window", "softcap", "s_aux", "is_causal", LAYOUT, "position_ids", "use_cache"}
    | {"cache_position", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"}
)


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences that are computed together."""

    start: int
    lengths: tuple[int, ...]
    places_SL: Tensor | None
    """Places of their tokens counted from `start`, padded with the last; None = all are equally long."""
    kept_N: Tensor | None
    """Of the [S * L] results, those that are no padding."""

    def to(self, device: torch.device | str) -> "Group":
        """The same group on another device."""
        return replace(
            self,
            places_SL=None if self.places_SL is None else self.places_SL.to(device, non_blocking=True),
            kept_N=None if self.kept_N is None else self.kept_N.to(device, non_blocking=True),
        )

    @property
    def stop(self) -> int:
        """Place behind the last token."""
        return self.start + sum(self.lengths)

    @property
    def longest(self) -> int:
        """Length of the longest sequence."""
        return max(self.lengths)


@dataclass(frozen=True)
class PackedLayout:
    """Where each sequence of a packed row lies."""

    groups: tuple[Group, ...]
    cpu_groups: tuple[Group, ...]
    """The same sequences, long ones each alone."""
    starts_S: Tensor
    """Where each sequence starts, and behind the last one where it ends, int32."""
    bound: int
    """No sequence is longer."""

    def to(self, device: torch.device | str) -> "PackedLayout":
        """The same layout on another device."""
        return replace(
            self,
            groups=tuple(group.to(device) for group in self.groups),
            cpu_groups=self.cpu_groups if torch.device(device).type == "cpu" else (),
            starts_S=self.starts_S.to(device, non_blocking=True),
        )


def lay_out(lengths: Sequence[int]) -> PackedLayout:
    """The layout of sequences in the order in which they lie; neighbours of similar length make the fewest groups."""
    assert all(length > 0 for length in lengths), "a sequence without tokens has no place"
    groups: list[Group] = []
    start = first = 0
    for number in range(1, len(lengths) + 1):
        if number < len(lengths) and _is_similar(lengths[first : number + 1]):
            continue
        group = _group(start, tuple(lengths[first:number]))
        groups.append(group)
        start, first = group.stop, number
    starts_S = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    cpu_groups = tuple(part for group in groups for part in _on_cpu(group))
    return PackedLayout(tuple(groups), cpu_groups, starts_S, max(_LEAST_BOUND, 1 << (max(lengths) - 1).bit_length()))


def _is_similar(lengths: Sequence[int]) -> bool:
    longest = max(lengths)
    return longest <= _SHORT or min(lengths) >= _SIMILAR * longest


def _on_cpu(group: Group) -> tuple[Group, ...]:
    if group.longest <= _ALONE_ON_CPU or group.places_SL is None:
        return (group,)
    starts = accumulate(group.lengths[:-1], initial=group.start)
    return tuple(Group(start, (length,), None, None) for start, length in zip(starts, group.lengths, strict=True))


def _group(start: int, lengths: tuple[int, ...]) -> Group:
    if len(set(lengths)) == 1:
        return Group(start, lengths, None, None)
    lengths_S1 = torch.tensor(lengths)[:, None]
    starts_S1 = lengths_S1.cumsum(0) - lengths_S1
    column_L = torch.arange(max(lengths))
    places_SL = starts_S1 + torch.minimum(column_L, lengths_S1 - 1)
    return Group(start, lengths, places_SL, (column_L < lengths_S1).flatten().nonzero()[:, 0])


def attend_packed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention within each sequence of the one row: [1, heads, T, D] in, [1, T, Q, D] out."""
    layout = options.get(LAYOUT)
    name = type(module).__name__
    unknown = [option for option, value in options.items() if option not in _KNOWN_OPTIONS and value is not None]
    if not isinstance(layout, PackedLayout) or unknown or attention_mask is not None:
        raise UnsupportedModel(
            f"{name} cannot attend to packed sequences ({', '.join(unknown) or 'its layout does not arrive'}); set "
            "train.batches.is_packed=false"
        )
    if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedModel(f"{name} attends to both sides; a decoder-only network is needed")
    scaling = options.get("scaling")
    asked = _Asked(
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        dropout=float(options.get("dropout") or 0.0),
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
        sinks_Q=options.get("s_aux"),
    )
    if _has_kernel(query, asked):
        return _attend_row(layout, query[0], key[0], value[0], asked)[None], None
    # Squeezed and not taken out by index, whose gradient is a copy.
    return _attend_groups(layout, query.squeeze(0), key.squeeze(0), value.squeeze(0), asked)[None], None


@dataclass(frozen=True)
class _Asked:
    """What a layer wants of its attention."""

    scaling: float
    dropout: float
    window: int | None
    softcap: float | None
    sinks_Q: Tensor | None


def _has_kernel(query: Tensor, asked: _Asked) -> bool:
    """Whether the kernel for whole rows can compute this."""
    is_plain = query.device.type == "cuda" and asked.softcap is None and asked.sinks_Q is None
    width = query.shape[-1]
    return is_plain and query.dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= _WIDEST_HEAD


def _attend_row(layout: PackedLayout, query_QTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, asked: _Asked) -> Tensor:
    """The whole row by torch's own kernel for sequences of unequal length, [T, Q, D]."""
    window = asked.window if asked.window is not None and asked.window < layout.bound else None
    out_TQD: Tensor = torch.ops.aten._flash_attention_forward(
        query_QTD.transpose(0, 1),
        key_HTD.transpose(0, 1),
        value_HTD.transpose(0, 1),
        layout.starts_S,
        layout.starts_S,
        layout.bound,
        layout.bound,
        asked.dropout,
        True,
        False,
        scale=asked.scaling,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )[0]
    return out_TQD


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_groups(
    layout: PackedLayout, query_QTD: Tensor, key_HTD: Tensor, value_HTD: Tensor, asked: _Asked
) -> Tensor:
    """Group after group, [T, Q, D]."""
    groups = layout.cpu_groups if query_QTD.device.type == "cpu" else layout.groups
    # Split and not sliced: the gradient of a slice is as long as the row and nearly all zeros, once for every group.
    sizes = [group.stop - group.start for group in groups]
    split = [torch.split(tensor.transpose(0, 1), sizes) for tensor in (query_QTD, key_HTD, value_HTD)]
    parts = [
        _attend(group, query_NQD, key_NHD, value_NHD, asked)
        for group, query_NQD, key_NHD, value_NHD in zip(groups, *split, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend(group: Group, query_NQD: Tensor, key_NHD: Tensor, value_NHD: Tensor, asked: _Asked) -> Tensor:
    """What the tokens of one group read, [N, Q, D]."""
    window, softcap, sinks_Q = asked.window, asked.softcap, asked.sinks_Q
    query, key, value = (_by_sequence(group, tensor) for tensor in (query_NQD, key_NHD, value_NHD))
    is_windowed = window is not None and window < group.longest
    if softcap is None and sinks_Q is None:
        out_SQLD = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=_visible(group.longest, window, query.device) if is_windowed else None,
            is_causal=not is_windowed,
            dropout_p=asked.dropout,
            scale=asked.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    else:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        scores_SQLL = (query @ key.transpose(2, 3)) * asked.scaling
        if softcap is not None:
            scores_SQLL = torch.tanh(scores_SQLL / softcap) * softcap
        hidden_LL = ~_visible(group.longest, window if is_windowed else None, query.device)
        scores_SQLL = scores_SQLL.masked_fill(hidden_LL, -math.inf)
        if sinks_Q is not None:
            sinks = sinks_Q.view(1, -1, 1, 1).expand(scores_SQLL.shape[0], -1, scores_SQLL.shape[2], 1)
            scores_SQLL = torch.cat([scores_SQLL, sinks.to(scores_SQLL.dtype)], -1)
        weights = scores_SQLL.softmax(-1, dtype=torch.float32).to(value.dtype)[..., : group.longest]
        out_SQLD = nn.functional.dropout(weights, asked.dropout) @ value
    out_NQD = out_SQLD.transpose(1, 2).flatten(0, 1)
    if group.kept_N is None:
        return out_NQD
    kept: Tensor = _Unpadded.apply(out_NQD, group.kept_N)  # type: ignore[no-untyped-call]
    return kept


def _by_sequence(group: Group, tensor_NHD: Tensor) -> Tensor:
    """[N, heads, D] to [S, heads, L, D]."""
    padded_MHD = tensor_NHD
    if group.places_SL is not None and group.kept_N is not None:
        padded_MHD = _Padded.apply(tensor_NHD, group.places_SL, group.kept_N)  # type: ignore[no-untyped-call]
    shape = (len(group.lengths), group.longest, *tensor_NHD.shape[1:])
    return padded_MHD.reshape(shape).transpose(1, 2)


class _Padded(torch.autograd.Function):
    """Rows [N, ...] of sequences to [S * L, ...].

    No row that is kept looks at padding, which lies behind it, and what padding reads is thrown away: its gradient is
    zero. Adding it up, as indexing alone would, took longer than attention itself.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places_SL: Tensor, kept_N: Tensor) -> Tensor:
        ctx.save_for_backward(kept_N)
        return rows.index_select(0, places_SL.flatten())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (kept_N,) = ctx.saved_tensors
        return grad.index_select(0, kept_N), None, None


class _Unpadded(torch.autograd.Function):
    """Rows [S * L, ...] without those of padding, [N, ...]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, kept_N: Tensor) -> Tensor:
        ctx.save_for_backward(kept_N)
        ctx.num_rows = rows.shape[0]
        return rows.index_select(0, kept_N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept_N,) = ctx.saved_tensors
        return grad.new_zeros(ctx.num_rows, *grad.shape[1:]).index_copy_(0, kept_N, grad), None


def _visible(length: int, window: int | None, device: torch.device) -> Tensor:
    """Whether a query [L, 1] may look at a key [L]."""
    position_L = torch.arange(length, device=device)
    is_visible_LL = position_L <= position_L[:, None]
    if window is not None:
        is_visible_LL &= position_L > position_L[:, None] - window
    return is_visible_LL
