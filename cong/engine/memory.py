"""How many blocks of keys and values fit, and what a step must move and compute at least. Arithmetic on sizes only."""

from cong.config.engine import EngineConfig
from cong.engine.runner import Runner
from cong.errors import NotEnoughMemory
from cong.models import NetworkSet, available_memory

_MIB = 2**20


def plan_blocks(runner: Runner, networks: NetworkSet, config: EngineConfig) -> int:
    """Blocks within the configured memory, and no more than every running sequence at full length could use."""
    bytes_per_block = runner.bytes_per_token * config.block_size
    free = available_memory(runner.device)
    budget = config.kv_memory_bytes or int(free * config.kv_memory_fraction)
    named = f"engine.kv_memory_bytes is {config.kv_memory_bytes / _MIB:.1f} MiB"
    if not config.kv_memory_bytes:
        named = f"{budget / _MIB:.1f} MiB are {config.kv_memory_fraction} (engine.kv_memory_fraction) of what is free"
    if budget > free:
        raise NotEnoughMemory(f"{named}, and {free / _MIB:.1f} MiB are free beside the weights; ask for less")
    num_blocks = budget // bytes_per_block
    if num_blocks < 2:
        raise NotEnoughMemory(
            f"{named}, and one block of {config.block_size} tokens takes {bytes_per_block / _MIB:.3f} MiB in all "
            "networks; give room for at least 2 blocks, or make engine.block_size smaller"
        )
    if networks.context_length is None:
        return num_blocks
    return min(num_blocks, -(-networks.context_length // config.block_size) * config.max_running)


class StepCost:
    """What a step moves and computes at least: every weight once, every key and value it looks at.

    Of experts those that its tokens are expected to meet if each is as likely as any other; networks that share their
    weights are taken to send a token to the same ones.
    """

    def __init__(self, networks: NetworkSet, runner: Runner) -> None:
        self._own_bytes = networks.own_bytes
        self._itemsize = runner.dtype.itemsize
        self._bytes_per_token = runner.bytes_per_token
        self._weights = [network.weights for network in networks.networks]
        self._owned = [network.weights for network in networks.networks if network.base_fingerprint is None]

    def num_bytes(self, num_tokens: int, context_tokens: int) -> int:
        """Bytes of a step that computes so many tokens, and whose sequences look at so many in all."""
        unread = sum(weights.num_parameters - weights.num_read(num_tokens) for weights in self._owned)
        return self._own_bytes - int(unread * self._itemsize) + context_tokens * self._bytes_per_token

    def num_operations(self, num_tokens: int, num_rows: int) -> int:
        """Multiplications and additions with weights for so many computed tokens, and logits of so many of them."""
        return 2 * sum(weights.num_body * num_tokens + weights.num_head * num_rows for weights in self._weights)
