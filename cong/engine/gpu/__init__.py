"""How a step is computed on a GPU: attention and draws in Triton, layers compiled by torch, decoding as CUDA graphs.

Modules named `*_kernels` need triton and are imported where they are launched.
"""
