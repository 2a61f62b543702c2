"""The networks that a configuration names, loaded and joined: what an engine is given."""

from cong.config.models import ModelsConfig
from cong.errors import ConfigError
from cong.models.network import Network, attach_adapter, load_network
from cong.models.network_set import NetworkSet, join_networks
from cong.schemas import Role

ROLES: tuple[Role, ...] = ("strong", "aligned", "base")
"""Order of the networks, and of a mixture's weights."""


def load_networks(models: ModelsConfig) -> NetworkSet:
    """The networks of a configuration, in the order of a mixture's weights: strong, aligned, base."""
    template = None if models.chat_template is None else models.chat_template.read_text(encoding="utf-8")
    given = {role: network for role in ROLES if (network := getattr(models, role)).source}
    if not given:
        raise ConfigError("models names no network; set models.aligned.source and models.base.source")
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
