"""Several networks checked as one: they must read and write the same tokens before their logits may be mixed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from cong.errors import ConfigError, TokenizerMismatch
from cong.models.network import Network
from cong.models.tokenizer import Tokenizer
from cong.schemas import MAX_NETWORKS, NetworkIdentity

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class NetworkSet:
    """Networks that share one tokenizer, in the order of their weights in a mixture."""

    networks: tuple[Network, ...]
    tokenizer: Tokenizer
    """That of the first network; the others map every token to the same id."""
    shared_vocab_size: int
    """Logits are cut to this width: what lies beyond is padding and means nothing."""
    eos_ids: frozenset[int]
    """Ids that end a sequence in any of the networks."""
    context_length: int | None
    """Of the shortest network; None = none sets a limit."""
    messages: tuple[str, ...]
    """Differences that were bridged; each has been logged as a warning."""

    @property
    def identities(self) -> tuple[NetworkIdentity, ...]:
        """What a sample record says about the networks."""
        return tuple(network.identity for network in self.networks)

    @property
    def text_fingerprint(self) -> str:
        """The tokenizer's, and the ends of sequence that networks state beside its own: what makes a text of ids."""
        more = sorted(self.eos_ids - {self.tokenizer.eos_id})
        return "-".join((self.tokenizer.fingerprint, *map(str, more)))

    @property
    def own_bytes(self) -> int:
        """Memory of all weights, shared ones counted once."""
        return sum(network.own_bytes for network in self.networks)


def join_networks(networks: Sequence[Network]) -> NetworkSet:
    """Check that networks can be decoded in lockstep, and say which differences were bridged."""
    if not 1 <= len(networks) <= MAX_NETWORKS:
        raise ConfigError(f"{len(networks)} networks were given; a deployment has 1 to {MAX_NETWORKS}")
    roles = [network.role for network in networks]
    if len(set(roles)) < len(roles):
        raise ConfigError(f"the networks' roles are {', '.join(roles)}; give each role once")
    first = networks[0]
    for other in networks[1:]:
        _require_same_tokens(first, other)
    num_tokens = first.tokenizer.num_tokens
    for network in networks:
        if network.architecture.vocab_width < num_tokens:
            raise TokenizerMismatch(
                f"{network.name} has logits for {network.architecture.vocab_width} tokens, and its tokenizer has ids "
                f"up to {num_tokens - 1}; give the tokenizer that the network was trained with"
            )
    all_ends = frozenset[int]().union(*(network.eos_ids for network in networks))
    messages = (
        *_width_messages(networks, num_tokens),
        *_end_messages(networks, num_tokens),
        *_template_messages(first, networks[1:]),
        *_length_messages(networks),
    )
    for message in messages:
        logger.warning("%s", message)
    limits = [network.architecture.context_length for network in networks]
    return NetworkSet(
        networks=tuple(networks),
        tokenizer=first.tokenizer,
        shared_vocab_size=num_tokens,
        eos_ids=frozenset(token_id for token_id in all_ends if token_id < num_tokens),
        context_length=min((limit for limit in limits if limit is not None), default=None),
        messages=messages,
    )


def _require_same_tokens(first: Network, other: Network) -> None:
    ours, theirs = first.tokenizer, other.tokenizer
    if ours.token_to_id != theirs.token_to_id:
        tokens = ours.token_to_id.keys() | theirs.token_to_id.keys()
        differing = sorted(token for token in tokens if ours.token_to_id.get(token) != theirs.token_to_id.get(token))
        examples = ", ".join(
            f"{token!r} is {ours.token_to_id.get(token, 'absent')} and {theirs.token_to_id.get(token, 'absent')}"
            for token in differing[:3]
        )
        raise TokenizerMismatch(
            f"{first.name} and {other.name} give {len(differing)} tokens different ids ({examples}); networks that are "
            "mixed must share one tokenizer: use networks of one family, or transfer text instead of logits"
        )
    if ours.bos_id != theirs.bos_id or ours.special_ids != theirs.special_ids:
        differing_ids = sorted(ours.special_ids ^ theirs.special_ids)
        raise TokenizerMismatch(
            f"{first.name} and {other.name} agree on all ids but not on their use: beginning of sequence {ours.bos_id} "
            f"and {theirs.bos_id}, special in one only {differing_ids[:10]}; correct one tokenizer_config.json"
        )


def _width_messages(networks: Sequence[Network], num_tokens: int) -> list[str]:
    widths = {network.name: network.architecture.vocab_width for network in networks}
    if set(widths.values()) == {num_tokens}:
        return []
    listed = ", ".join(f"{name} {width}" for name, width in widths.items())
    return [f"logits are cut to the {num_tokens} ids that the tokenizer has (widths: {listed}); the rest is padding"]


def _end_messages(networks: Sequence[Network], num_tokens: int) -> list[str]:
    messages = []
    if len({network.eos_ids for network in networks}) > 1:
        listed = ", ".join(f"{network.name} {sorted(network.eos_ids)}" for network in networks)
        messages.append(f"networks end sequences differently ({listed}); any of these ids ends one")
    for network in networks:
        unknown = sorted(token_id for token_id in network.eos_ids if token_id >= num_tokens)
        if unknown:
            messages.append(f"{network.name} names ends of sequence {unknown} that are no tokens; they are ignored")
    if not any(network.eos_ids for network in networks):
        messages.append("no network names an end of sequence; samples end by length or stop strings only")
    return messages


def _template_messages(first: Network, others: Sequence[Network]) -> list[str]:
    return [
        f"{first.name} and {other.name} have different chat templates; messages are rendered by that of {first.name}"
        for other in others
        if other.tokenizer.chat_template != first.tokenizer.chat_template
    ]


def _length_messages(networks: Sequence[Network]) -> list[str]:
    return [
        f"{network.name} turns all positions of a sequence of more than {facts.context_length} tokens by other angles "
        f"(longrope), which a cache of keys cannot follow; sequences end there, not at {facts.stated_context_length}"
        for network in networks
        if (facts := network.architecture).context_length != facts.stated_context_length
    ]
