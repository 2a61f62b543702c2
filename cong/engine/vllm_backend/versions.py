"""Which vLLM this back end was tested with. Imports nothing of it."""

from cong.errors import ConfigError

TESTED_VERSIONS = ("0.32.0",)


def require_tested(version: str) -> None:
    """Refuse a vLLM whose insides are not known to be as this back end needs them."""
    if version.split("+")[0] not in TESTED_VERSIONS:
        raise ConfigError(
            f"vLLM {version} is installed, and its back end was tested with {', '.join(TESTED_VERSIONS)}; install "
            "one of these, or set engine.backend to cong"
        )


def require_known_runner(*, is_v2: bool) -> None:
    """Refuse vLLM's newer model runner, whose insides differ."""
    if is_v2:
        raise ConfigError(
            "vLLM would use its model runner V2, which this back end does not know; set VLLM_USE_V2_MODEL_RUNNER=0 in "
            "the environment of the process"
        )
