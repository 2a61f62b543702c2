"""The networks that a configuration names, loaded and joined: what an engine is given."""

from cong.config.models import ModelsConfig, NetworkConfig
from cong.errors import ConfigError
from cong.models.network import Network, attach_adapter, describe_network, load_network
from cong.models.network_set import NetworkSet, join_networks
from cong.schemas import Role, SamplingParameters

ROLES: tuple[Role, ...] = ("strong", "aligned", "base")
"""Order of the networks, and of a mixture's weights."""


def roles_of(models: ModelsConfig) -> tuple[Role, ...]:
    """Of the networks that a configuration names, in the order of a mixture's weights."""
    return tuple(_given(models))


def require_weights(sampling: SamplingParameters, models: ModelsConfig) -> None:
    """Refuse weights that are not one for each network; asked before they are loaded, which may take minutes."""
    weights, roles = sampling.weights, roles_of(models)
    if len(weights) != len(roles):
        raise ConfigError(
            f"sampling.weights are {weights}, and models names {len(roles)} network(s): {', '.join(roles)}; give one "
            "weight for each, or name the network that is missing"
        )


def load_networks(models: ModelsConfig) -> NetworkSet:
    """The networks of a configuration, in the order of a mixture's weights: strong, aligned, base."""
    template, given = _template(models), _given(models)
    loaded: dict[Role, Network] = {}
    # Plain networks first: an adapter is put on the one it shares its weights with.
    for role, network in sorted(given.items(), key=lambda item: item[1].adapter is not None):
        plain = network.model_copy(update={"adapter": None})
        twin = next((loaded[other] for other in loaded if given[other] == plain), None)
        if network.adapter is not None and twin is not None:
            loaded[role] = attach_adapter(twin, network.adapter, role=role, root=models.root, chat_template=template)
        else:
            loaded[role] = load_network(
                network.source,
                role=role,
                dtype=models.dtype,
                device=models.device,
                revision=network.revision,
                adapter=network.adapter,
                root=models.root,
                chat_template=template,
            )
    return join_networks([loaded[role] for role in ROLES if role in loaded])


def describe_networks(models: ModelsConfig) -> NetworkSet:
    """The same networks without their weights, for an engine that loads them itself; adapters must be merged."""
    template = _template(models)
    networks = []
    for role, network in _given(models).items():
        if network.adapter is not None:
            raise ConfigError(
                f"models.{role}.adapter is {network.adapter!r}; this engine takes whole networks only: merge the "
                "adapter into a folder of its own (cong.models.save_network), or set engine.backend to cong"
            )
        networks.append(
            describe_network(
                network.source,
                role=role,
                dtype=models.dtype,
                revision=network.revision,
                root=models.root,
                chat_template=template,
            )
        )
    return join_networks(networks)


def _template(models: ModelsConfig) -> str | None:
    return None if models.chat_template is None else models.chat_template.read_text(encoding="utf-8")


def _given(models: ModelsConfig) -> dict[Role, NetworkConfig]:
    """The networks that are named, in the order of a mixture's weights."""
    given = {role: network for role in ROLES if (network := getattr(models, role)).source}
    if not given:
        raise ConfigError("models names no network; set models.aligned.source and models.base.source")
    return given
