"""The product of few rows, by Triton's interpreter where there is no GPU, against torch's."""

import pytest
import torch

pytest.importorskip("triton")

from bench.few_rows import FewRows, Plan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("num_rows", [1, 13, 64])
@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_parts_add_up_to_the_product_again_and_again(num_rows: int, num_parts: int) -> None:
    """Widths that fill no tile and no block; five parts are more than there are blocks."""
    generator = torch.Generator().manual_seed(1)
    weight_SIO = torch.randn(2, 100, 90, generator=generator).to(DEVICE)
    product = FewRows(Plan(num_parts, tile_outputs=32, block_inputs=32), weight_SIO)
    for _ in range(3):
        hidden_SNI = torch.randn(2, num_rows, 100, generator=generator).to(DEVICE)
        tolerance = 1e-4 if DEVICE.type == "cpu" else 0.1  # a GPU multiplies in fewer bits
        torch.testing.assert_close(
            product(hidden_SNI, weight_SIO), torch.bmm(hidden_SNI, weight_SIO), rtol=tolerance, atol=tolerance
        )
