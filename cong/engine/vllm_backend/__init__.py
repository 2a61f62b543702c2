"""K networks as one vLLM model, behind the engine protocol. The one place that imports vllm.

`cong.engine.opening` comes here when the configuration says so, and vLLM itself by its plug-in entry point.
"""
