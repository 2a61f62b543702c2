"""Which records pass a filter, over columns."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cong.config.stream import SampleFilter

FILTER_COLUMNS = ("kind", "finish_reason", "num_tokens", "implicit_reward_mean")


def is_selective(wanted: SampleFilter) -> bool:
    """Whether a filter can refuse anything."""
    return wanted != SampleFilter()


def passes(wanted: SampleFilter, table: pa.Table) -> npt.NDArray[np.bool_]:
    """Which rows of a table with FILTER_COLUMNS pass."""
    keep = np.ones(table.num_rows, dtype=np.bool_)
    for name, allowed in (("kind", wanted.kinds), ("finish_reason", wanted.finish_reasons)):
        if allowed:
            keep &= pc.is_in(table.column(name), value_set=pa.array(allowed)).to_numpy()
    num_tokens = table.column("num_tokens").to_numpy()
    keep &= num_tokens >= wanted.min_tokens
    if wanted.max_tokens:
        keep &= num_tokens <= wanted.max_tokens
    # A null becomes NaN, which no comparison passes.
    reward = table.column("implicit_reward_mean").to_numpy()
    if wanted.min_reward_mean is not None:
        keep &= reward >= wanted.min_reward_mean
    if wanted.max_reward_mean is not None:
        keep &= reward <= wanted.max_reward_mean
    return keep
