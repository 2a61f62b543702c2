"""vLLM's plug-in entry point: makes the mixed model known in every process that vLLM starts. Imports no torch."""

ARCHITECTURE = "CongMixedForCausalLM"
"""The name under which vLLM knows the networks of a deployment as one model."""

MODEL = "cong.engine.vllm_backend.model:MixedForCausalLM"


def register() -> None:
    """Tell vLLM of the model; called by vLLM itself, in some processes more than once."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, MODEL)
