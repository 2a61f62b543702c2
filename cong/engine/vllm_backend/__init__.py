"""K networks as one vLLM model, behind the engine protocol. The one place that imports vllm; nothing imports it lazily.

Whoever has not installed vLLM never comes here: `cong.engine.opening` does, when the configuration says so.
"""
