"""Products of one input joined into one: fewer and wider kernels over the same weights, which still lie in memory once.

The modelling code stays as it is and calls its maps one after the other; the first that is called computes for all.
Which maps these are, a pass shows: they stand in one module and are given the very same tensor. Knows torch modules
only. Legend: S networks of a stack, I and O widths of a product.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Ordered
from typing import Any

import torch
from torch import Tensor, nn

from cong.engine.stack import LowRank, StackedLinear, base_of, copy_modules, is_adapted, leaves_of, share


class FirstProduct(nn.Module):
    """Stands for the map that is called first: computes the joint product, and hands the others their parts."""

    def __init__(self, joint: nn.Module, widths: list[int], others: list["LaterProduct"]) -> None:
        super().__init__()
        self.joint = joint
        self.widths = widths
        self.others = others

    def forward(self, hidden: Tensor) -> Tensor:
        """The first part of the joint product."""
        parts = torch.split(self.joint(hidden), self.widths, dim=-1)
        for other, part in zip(self.others, parts[1:], strict=True):
            other.kept = hidden, part
        return parts[0]


class LaterProduct(nn.Module):
    """Stands for a map that is called later: gives its part of the joint product, or computes where it has none.

    A part is given for the very tensor that it was made of, and only once: until the next call that tensor may change.
    """

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own
        self.kept: tuple[Tensor, Tensor] | None = None
        """What the joint product was made of, and this map's part."""

    def forward(self, hidden: Tensor) -> Tensor:
        """This map's product."""
        kept, self.kept = self.kept, None
        if kept is not None and kept[0] is hidden:
            return kept[1]
        product: Tensor = self.own(hidden)
        return product


def join_products(
    model: nn.Module, networks: Ordered[nn.Module], others: Ordered[nn.Module], run: Callable[[], object]
) -> nn.Module:
    """The model with products of one input joined, or itself where there are none; `run` takes it through one pass.

    `networks` are those that it stands for: their weights become parts of the joint ones. Weights that are held under
    several names, or by `others` too, are left alone, as are maps of other kinds than torch's own.
    """
    siblings = _find_siblings(model, networks, others, run)
    if siblings and model is networks[0]:
        model = copy_modules(model)  # whoever holds the network finds it as it was
    for paths in siblings:
        _join(model, networks, paths)
    return model


def _find_siblings(
    model: nn.Module, networks: Ordered[nn.Module], others: Ordered[nn.Module], run: Callable[[], object]
) -> list[list[str]]:
    """Paths of the maps of one module that are called once in a pass, with one tensor; in the order of their calls."""
    calls: list[tuple[str, Hashable, Tensor]] = []

    def listen(path: str, product: Any) -> torch.utils.hooks.RemovableHandle:
        is_stacked = type(product) is StackedLinear
        weight, bias = (product.weight_SIO, product.bias_S1O) if is_stacked else (product.weight, product.bias)
        kind = path.rpartition(".")[0], is_stacked, weight.dtype, bias is None

        def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            # The tensor is kept until the pass is over, so that no later one has its identity.
            calls.extend((path, (*kind, id(hidden)), hidden) for hidden in arguments)

        handle: torch.utils.hooks.RemovableHandle = product.register_forward_pre_hook(note)
        return handle

    handles = [listen(path, product) for path, product in _maps(model, networks, others)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    num_calls = Counter(path for path, *_ in calls)
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for path, key, _ in calls:
        if num_calls[path] == 1:
            groups[key].append(path)
    return [paths for paths in groups.values() if len(paths) > 1]


def _maps(model: nn.Module, networks: Ordered[nn.Module], others: Ordered[nn.Module]) -> list[tuple[str, nn.Module]]:
    """The linear maps whose weights are held by `networks` alone and under one name; by path."""
    trees = [leaves_of(network) for network in networks]
    num_holders = Counter(
        weight.data_ptr()
        for network in (*networks, *others)
        for _, weight in network.named_parameters(remove_duplicate=False)
    )
    found = []
    for path in trees[0]:
        product: nn.Module = getattr(*_place(model, path))
        leaves: list[Any] = [base_of(tree[path]) for tree in trees]
        are_plain = all(type(leaf) is nn.Linear and type(leaf.weight) is nn.Parameter for leaf in leaves)
        if type(product) in (StackedLinear, nn.Linear) and are_plain:
            own = Counter(leaf.weight.data_ptr() for leaf in leaves)
            if all(num_holders[address] == count for address, count in own.items()):
                found.append((path, product))
    return found


def _place(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds a leaf's product, and its name there: low-rank changes are around it."""
    leaf = model.get_submodule(path)
    if isinstance(leaf, LowRank):
        return leaf, "module"
    parent, _, name = path.rpartition(".")
    return (leaf, "base_layer") if is_adapted(leaf) else (model.get_submodule(parent), name)


def _join(model: nn.Module, networks: Ordered[nn.Module], paths: list[str]) -> None:
    places = [_place(model, path) for path in paths]
    products = [getattr(*place) for place in places]
    leaves = [[base_of(network.get_submodule(path)) for network in networks] for path in paths]
    join = _join_stacked if type(products[0]) is StackedLinear else _join_plain
    joint, widths = join(products, leaves)
    others = [LaterProduct(product) for product in products[1:]]
    for place, product in zip(places, [FirstProduct(joint, widths, others), *others], strict=True):
        setattr(*place, product)


def _join_stacked(products: list[StackedLinear], leaves: list[list[Any]]) -> tuple[nn.Module, list[int]]:
    """The joint map, of which the others are parts from now on, and their widths."""
    widths = [product.weight_SIO.shape[2] for product in products]
    joint = StackedLinear(torch.cat([product.weight_SIO for product in products], dim=2), None)
    for product, own, part_SIO in zip(products, leaves, torch.split(joint.weight_SIO, widths, dim=2), strict=True):
        product.weight_SIO = part_SIO
        share(own, "weight", part_SIO.transpose(1, 2))
    biases = [product.bias_S1O for product in products if product.bias_S1O is not None]
    if biases:
        joint.bias_S1O = torch.cat(biases, dim=2)
        for product, part_S1O in zip(products, torch.split(joint.bias_S1O, widths, dim=2), strict=True):
            product.bias_S1O = part_S1O
    return joint, widths


def _join_plain(products: list[nn.Linear], leaves: list[list[Any]]) -> tuple[nn.Module, list[int]]:
    """The same of maps of one network, or of one that all networks share."""
    widths = [product.out_features for product in products]
    joint = nn.Linear(products[0].in_features, sum(widths), bias=products[0].bias is not None, device="meta")
    for name, _ in list(joint.named_parameters()):
        whole = torch.cat([getattr(product, name) for product in products])
        setattr(joint, name, nn.Parameter(whole, requires_grad=False))
        for own, part in zip(leaves, torch.split(whole, widths), strict=True):
            for leaf in own:
                getattr(leaf, name).data = part
    return joint, widths
