"""A micro-batch through a network: logits at the positions that predict response tokens, and no others.

Knows neither gradients nor ranks. Legend: B rows, T positions, N response tokens, V vocabulary.
"""

from typing import Any

from torch import Tensor, nn

from cong.train.data.batch import MicroBatch
from cong.train.data.packing import LAYOUT


def response_logits(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Logits [N, V] that predict the response tokens of a batch on the network's device."""
    positions_N = batch.responses.positions_N
    call: dict[str, Any] = {
        "input_ids": batch.token_ids_BT,
        "position_ids": batch.position_ids_BT,
        "use_cache": False,
    }
    if batch.layout is not None:
        # The head is the largest matrix of a small network: it is multiplied with the rows that are asked about.
        logits_1NV: Tensor = model(**call, **{LAYOUT: batch.layout}, logits_to_keep=positions_N).logits
        # By index its gradient would be another copy of the largest tensor there is.
        return logits_1NV.squeeze(0)
    # Without an attention mask: what is padded lies to the right of all that is read.
    logits_BTV: Tensor = model(**call).logits
    return batch.responses.rows(logits_BTV)
