"""Several networks of identical shape as one module, so that every product reads all their weights in one batched call.

The modelling code stays transformers' own: it runs once on tensors whose first dimension counts the networks, while
the modules that hold weights are replaced by ones that hold S of them. Legend: S networks of the stack, N tokens,
I and O widths of a product. Knows torch modules only.
"""

import copy
from collections.abc import Sequence as Ordered
from typing import Any

import torch
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """S linear maps: [S, N, I] -> [S, N, O]."""

    def __init__(self, weight_SIO: Tensor, bias_S1O: Tensor | None) -> None:
        super().__init__()
        self.weight_SIO = weight_SIO
        self.bias_S1O = bias_S1O

    def forward(self, hidden_SNI: Tensor) -> Tensor:
        """Each network's slice through its own map."""
        if hidden_SNI.dim() == 2:  # some code flattens networks and tokens on the way
            stacked: Tensor = self(hidden_SNI.view(len(self.weight_SIO), -1, hidden_SNI.shape[1]))
            return stacked.flatten(0, 1)
        product = torch.bmm(hidden_SNI, self.weight_SIO)
        # Compiled, it is added where the product is read; a product that begins with it would copy it first.
        return product if self.bias_S1O is None else product + self.bias_S1O


class StackedEmbedding(nn.Module):
    """S tables: ids [S, N] -> [S, N, O]."""

    def __init__(self, weight_SVO: Tensor) -> None:
        super().__init__()
        self.weight_SVO = weight_SVO
        self.offset_S1 = torch.arange(weight_SVO.shape[0], device=weight_SVO.device)[:, None] * weight_SVO.shape[1]

    def forward(self, ids_SN: Tensor) -> Tensor:
        """Each network's rows from its own table."""
        return nn.functional.embedding(ids_SN + self.offset_S1, self.weight_SVO.flatten(0, 1))


class StackedLayerNorm(nn.Module):
    """S layer norms: [S, ..., I] -> the same."""

    def __init__(self, norms: Ordered[nn.LayerNorm]) -> None:
        super().__init__()
        self.width = norms[0].normalized_shape
        self.eps = norms[0].eps
        self.weight_SI = torch.stack([norm.weight for norm in norms])
        self.bias_SI = torch.stack([norm.bias for norm in norms]) if norms[0].bias is not None else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise, then scale and shift each network's slice by its own weights."""
        if hidden.dim() == 2:
            stacked: Tensor = self(hidden.view(len(self.weight_SI), -1, hidden.shape[1]))
            return stacked.flatten(0, 1)
        shape = (hidden.shape[0], *(1,) * (hidden.dim() - 2), hidden.shape[-1])
        normed = nn.functional.layer_norm(hidden, self.width, None, None, self.eps) * self.weight_SI.view(shape)
        return normed if self.bias_SI is None else normed + self.bias_SI.view(shape)


class StackedNorm(nn.Module):
    """S norms with one elementwise weight, through the model's own code: its weight is shaped to broadcast."""

    def __init__(self, norms: Ordered[nn.Module]) -> None:
        super().__init__()
        self.norm = copy.copy(norms[0])
        self.norm._parameters = dict(norms[0]._parameters)
        self.weight_SI = torch.stack([norm.get_parameter("weight") for norm in norms])
        self.num_dims = 0

    def forward(self, hidden: Tensor) -> Tensor:
        """The norm of every network's slice."""
        if hidden.dim() != self.num_dims:
            shape = (hidden.shape[0], *(1,) * (hidden.dim() - 2), hidden.shape[-1])
            self.norm.weight = nn.Parameter(self.weight_SI.view(shape), requires_grad=False)
            self.num_dims = hidden.dim()
        normed: Tensor = self.norm(hidden)
        return normed


class StackedLoop(nn.Module):
    """S modules of any kind, one after the other: slower than the others, and right for every leaf."""

    def __init__(self, modules: Ordered[nn.Module]) -> None:
        super().__init__()
        self.each = nn.ModuleList(modules)

    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        """Each network's slice of every tensor through its own module."""
        count = len(self.each)

        def part(value: Any, index: int) -> Any:
            is_stacked = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count
            return value[index : index + 1] if is_stacked else value

        return torch.cat(
            [
                module(*(part(a, k) for a in arguments), **{name: part(o, k) for name, o in options.items()})
                for k, module in enumerate(self.each)
            ]
        )


class LowRank(nn.Module):
    """A module for all S networks, and on top of it the low-rank change (LoRA) of some of them."""

    def __init__(self, module: nn.Module, changes: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.module = module
        self.changes = changes
        """Network -> [I, rank] and [rank, O], the scaling in the second."""

    def forward(self, hidden_SNI: Tensor) -> Tensor:
        """What the module says, changed for the networks that have a change."""
        output: Tensor = self.module(hidden_SNI)
        for k, (down_IR, up_RO) in self.changes.items():
            output[k] += hidden_SNI[k] @ down_IR @ up_RO
        return output


STACKED = (StackedLinear, StackedEmbedding, StackedLayerNorm, StackedNorm, StackedLoop, LowRank)
"""What stands for leaves of a stack."""


def is_adapted(module: nn.Module) -> bool:
    """Whether this is a layer with LoRA on top, as peft builds it."""
    has_magnitudes = any(getattr(module, "use_dora", {}).values())
    return hasattr(module, "base_layer") and hasattr(module, "lora_A") and not has_magnitudes


def leaves_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold weights, by path; an adapted layer is one, whatever it is made of."""
    adapted = {name for name, module in model.named_modules() if is_adapted(module)}
    return {
        name: module
        for name, module in model.named_modules()
        if name in adapted
        or (
            next(module.parameters(recurse=False), None) is not None
            and not any(name.startswith(f"{path}.") for path in adapted)
        )
    }


def base_of(leaf: Any) -> Any:
    """The leaf without what is adapted about it."""
    return leaf.base_layer if is_adapted(leaf) else leaf


def _changes(leaves: Ordered[Any]) -> dict[int, tuple[Tensor, Tensor]]:
    changes = {}
    for k, leaf in enumerate(leaves):
        if is_adapted(leaf):
            (name,) = leaf.active_adapters
            up_RO = leaf.lora_B[name].weight.t() * leaf.scaling[name]
            changes[k] = (leaf.lora_A[name].weight.t(), up_RO)
    return changes


def _stack_leaf(leaves: Ordered[Any], tables: dict[int, Tensor]) -> nn.Module:
    """One module for S leaves, adapted or not."""
    changes = _changes(leaves)
    bases = [base_of(leaf) for leaf in leaves]
    addresses = [[parameter.data_ptr() for parameter in base.parameters()] for base in bases]
    is_shared = all(address == addresses[0] for address in addresses)
    # Weights that all networks share act on the last dimension, whatever stands before it.
    module = bases[0] if is_shared else _stack_own(bases, tables)
    return LowRank(module, changes) if changes else module


def _stack_own(leaves: Ordered[Any], tables: dict[int, Tensor]) -> nn.Module:
    """One module for S leaves with weights of their own. `tables` remembers embeddings that heads are tied to."""
    first = leaves[0]
    if type(first) is nn.Embedding:
        weight_SVO = torch.stack([leaf.weight for leaf in leaves])
        share(leaves, "weight", weight_SVO)
        tables[weight_SVO.data_ptr()] = weight_SVO
        return StackedEmbedding(weight_SVO)
    if type(first) is nn.Linear:
        tied = tables.get(first.weight.data_ptr())
        if tied is not None and all(leaf.weight.data_ptr() == tied[k].data_ptr() for k, leaf in enumerate(leaves)):
            weight_SIO = tied.transpose(1, 2)
        else:
            weight_SIO = torch.stack([leaf.weight.t() for leaf in leaves]).contiguous()
            share(leaves, "weight", weight_SIO.transpose(1, 2))
        return StackedLinear(weight_SIO, _stack_bias(leaves))
    if type(first).__name__ == "Conv1D":  # GPT-2's linear map, stored as [I, O]
        weight_SIO = torch.stack([leaf.weight for leaf in leaves])
        share(leaves, "weight", weight_SIO)
        return StackedLinear(weight_SIO, _stack_bias(leaves))
    if type(first) is nn.LayerNorm and first.weight is not None:
        return StackedLayerNorm(leaves)
    if type(first).__name__.endswith("RMSNorm") and [name for name, _ in first.named_parameters()] == ["weight"]:
        return StackedNorm(leaves)
    return StackedLoop(leaves)


def _stack_bias(leaves: Ordered[Any]) -> Tensor | None:
    return None if leaves[0].bias is None else torch.stack([leaf.bias for leaf in leaves])[:, None]


def share(leaves: Ordered[Any], name: str, stacked: Tensor) -> None:
    """Let every leaf's parameter be its slice of the stacked one, so that the weights lie in memory once."""
    for k, leaf in enumerate(leaves):
        getattr(leaf, name).data = stacked[k]


def copy_modules(model: nn.Module) -> nn.Module:
    """The same modules once more, on the same weights."""
    return copy.deepcopy(model, memo={id(t): t for t in [*model.parameters(), *model.buffers()]})


def can_stack(models: Ordered[nn.Module]) -> bool:
    """Whether the networks have the same layers of the same shapes, and no weights outside leaves."""
    first, *others = ({name: base_of(leaf) for name, leaf in leaves_of(model).items()} for model in models)
    if not others or any(next(leaf.children(), None) is not None for leaf in first.values()):
        return False
    return all(
        first.keys() == other.keys()
        and all(_is_twin(leaf, other[name]) for name, leaf in first.items())
        and _have_same_buffers(models[0], model)
        for other, model in zip(others, models[1:], strict=True)
    )


def _is_twin(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return (
        type(one) is type(other)
        and mine.keys() == theirs.keys()
        and all(p.shape == theirs[name].shape and p.dtype == theirs[name].dtype for name, p in mine.items())
    )


def _have_same_buffers(one: nn.Module, other: nn.Module) -> bool:
    theirs = dict(other.named_buffers())
    return all(name in theirs and torch.equal(buffer, theirs[name]) for name, buffer in one.named_buffers())


def stack_models(models: Ordered[nn.Module]) -> nn.Module:
    """One module for networks that `can_stack`; its weights and theirs are the same memory from now on.

    The caller compares its answers with the networks' own before it trusts it: settings that no weight shows, such as
    a scale, are taken from one of them.
    """
    trees = [leaves_of(model) for model in models]
    template = next((m for m, tree in zip(models, trees, strict=True) if not any(map(is_adapted, tree.values()))), None)
    template = models[0] if template is None else template
    stacked = copy_modules(template)
    tables: dict[int, Tensor] = {}
    # Embeddings first: a head may be tied to one.
    for name in sorted(trees[0], key=lambda name: not isinstance(base_of(trees[0][name]), nn.Embedding)):
        parent, _, child = name.rpartition(".")
        setattr(stacked.get_submodule(parent), child, _stack_leaf([tree[name] for tree in trees], tables))
    return stacked
