"""Settings of the engine: what one accelerator holds and how much of it a step may use."""

from typing import Literal

from pydantic import Field

from cong.config.base import Count, Settings

Backend = Literal["cong", "vllm"]
KernelChoice = Literal["auto", "compiled", "torch"]


class VllmConfig(Settings):
    """What only the vLLM back end reads."""

    tensor_parallel_size: Count = 1
    """GPUs over which every network is split."""
    block_size: int = Field(default=0, ge=0, le=1024)
    """Tokens of one block; 0 = 64 on a CPU, which needs a multiple of 32, and elsewhere what vLLM takes."""
    is_eager: bool = False
    """Run without compiling and capturing: starts sooner, decodes slower."""


class EngineConfig(Settings):
    """Sizes that bound memory and latency; none of them changes a token."""

    backend: Backend = "cong"
    """Who computes: our own engine, or vLLM, which is installed in an environment of its own."""
    vllm: VllmConfig = VllmConfig()
    block_size: int = Field(default=16, ge=1, le=1024)
    """Tokens of one block of keys and values."""
    max_running: int = Field(default=256, ge=1)
    """Sequences that are computed in one step."""
    max_step_tokens: int = Field(default=1024, ge=1)
    """Tokens that are computed in one step; a longer prompt takes several, and does not stall the others."""
    kv_memory_bytes: int = Field(default=0, ge=0)
    """Memory for keys and values; 0 = `kv_memory_fraction` of what is free once the weights are loaded."""
    kv_memory_fraction: float = Field(default=0.5, gt=0.0, le=1.0)
    stacks_networks: bool = True
    """Run networks of identical shape as one module with stacked weights."""
    kernel: KernelChoice = "auto"
    """How decoding attends. compiled: by kernels, on a CPU in C++, compiled on first use, on a GPU in Triton. torch:
    slower, in torch's own operators. auto: compiled where it can be."""
    captures_graphs: bool = True
    """On a GPU, capture steps as CUDA graphs at start: far fewer launches, for some memory and seconds."""
    compiles_layers: bool = True
    """On a GPU, let torch compile the networks' layers for captured graphs: fewer and larger kernels, for a longer
    start."""
    joins_products: bool = True
    """On a GPU, compute a layer's products of one input, such as queries, keys and values, at once: fewer and
    larger kernels over the same weights."""
    looks_ahead: bool = True
    """On a GPU, begin a step of decoding before the tokens of the one before it have arrived, so that it does not wait
    for the host."""
