"""What kernels are for, by their names, and that their shares are those of the whole."""

import pytest
import torch

from bench.kernels import REST, Kernel, kernels_of, shares_of

NAMES = {
    "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT": "matrix products",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_warpgroupsize1x1x1": "matrix products",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128>(Params)": "matrix products",
    "void cublasLt::splitKreduce_kernel<32, 16, int, __nv_bfloat16, __nv_bfloat16, float>": "matrix products",
    "aten::mm": "matrix products",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, cutlass::bfloat16_t>>": "attention",
    "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<cutlass::bfloat16_t>": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4, ADAMW>>": "optimizer",
    "aten::_fused_adamw_": "optimizer",
    "triton_red_fused__to_copy_gather_logsumexp_sub_0": "log-probs",
    "triton_poi_fused__to_copy_arange_eq_exp_mul_sub_sum_unsqueeze_where_0": "log-probs",
    "void cunn_SoftMaxForward<4, c10::BFloat16, float, float, LogSoftMaxForwardEpilogue>": "log-probs",
    "Memcpy HtoD (Pinned -> Device)": "copies and fills",
    "triton_poi_fused_mul_silu_3": REST,
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>": REST,
}


@pytest.mark.parametrize(("name", "purpose"), NAMES.items())
def test_names_say_what_a_kernel_is_for(name: str, purpose: str) -> None:
    assert Kernel(name, 1, 1.0).purpose == purpose


def test_shares_are_of_all_the_time_there_is() -> None:
    kernels = [Kernel("aten::mm", 2, 3.0), Kernel("aten::bmm", 1, 1.0), Kernel("aten::silu", 1, 4.0)]
    shares = shares_of(kernels)
    assert (shares["matrix products"], shares[REST], sum(shares.values())) == (0.5, 0.5, 1.0)


def test_a_large_product_is_what_its_time_is_spent_on() -> None:
    matrix = torch.randn(700, 700)
    kernels = kernels_of(lambda: [matrix @ matrix for _ in range(3)], "cpu")
    assert [kernel.num_calls for kernel in kernels if kernel.name == "aten::mm"] == [3]
    assert next(iter(shares_of(kernels))) == "matrix products"
