"""Sizes of networks: known totals, agreement with real networks, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import cong
from cong.cli import main
from cong.config.engine import EngineConfig
from cong.config.models import ModelsConfig, NetworkConfig
from cong.config.train import LoraSettings
from cong.engine import Engine
from cong.errors import ConfigError
from cong.estimate.network_size import size_like, size_of, size_of_blueprint
from cong.models import join_networks, load_network
from cong.train.lora import add_lora
from tests.engine.conftest import FAMILIES, load, save_network
from tests.models.mixtures import MIXTURES

ASSETS = Path(cong.__file__).parent / "lab" / "assets"


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("Llama-3.2-1B", 1_235_814_400),
        ("Llama-3.2-3B", 3_212_749_824),
        ("Meta-Llama-3-8B", 8_030_261_248),
        ("Qwen2.5-0.5B", 494_032_768),
        ("Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen2.5-3B", 3_085_938_688),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Mixtral-8x7B", 46_702_792_704),
        ("OLMoE-1B-7B", 6_919_161_856),
        ("Qwen1.5-MoE-A2.7B", 14_315_784_192),
        ("Qwen3-30B-A3B", 30_532_122_624),
        ("Qwen3-235B-A22B", 235_093_634_560),
    ],
)
def test_public_networks_have_as_many_weights_as_published(name: str, num_parameters: int) -> None:
    assert size_like(name).weights.num_parameters == num_parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Mixtral-8x7B", 12.9),
        ("OLMoE-1B-7B", 1.3),
        ("Qwen1.5-MoE-A2.7B", 2.7),
        ("Qwen3-30B-A3B", 3.3),
        ("Qwen3-235B-A22B", 22.2),
        ("Qwen2.5-7B", 7.6),
    ],
)
def test_a_token_meets_as_many_as_published(name: str, billions: float) -> None:
    assert size_like(f"{name}-Instruct").weights.num_active == pytest.approx(billions * 1e9, abs=0.06e9)


def test_weights_of_a_mixture_by_hand() -> None:
    # 48 layers, 2,048 wide: 32 heads and 2 times 4 of 128, 128 experts of 768 of which 8 are met, a router of 128
    weights = size_like("Qwen3-30B-A3B").weights
    attention, expert = 2 * 2048 * 128 * (32 + 4), 3 * 2048 * 768
    assert weights.num_head == 151_936 * 2048
    assert weights.num_body == 48 * (attention + 2048 * 128 + 8 * expert)
    norms = 48 * (2 * 2048 + 2 * 128) + 2048
    assert weights.num_active == weights.num_body + 2 * weights.num_head + norms
    assert weights.num_parameters - weights.num_active == 48 * 120 * expert


def test_keys_of_a_token_are_counted_by_hand() -> None:
    # 28 layers, 8 heads of 128, keys and values
    assert size_like("Llama-3.2-3B").architecture.num_kept_per_token == 2 * 28 * 8 * 128 == 57_344


@pytest.mark.parametrize("name", ["weak_base", "strong_base"])
def test_a_folder_is_counted_like_the_network_in_it(name: str, tmp_path: Path) -> None:
    network = load_network(str(ASSETS / name), role="base", dtype="float32", device="cpu")
    (tmp_path / "config.json").write_text((ASSETS / name / "config.json").read_text())
    whole = size_of(NetworkConfig(source=str(ASSETS / name)), ModelsConfig())
    assert whole == size_of(NetworkConfig(source=tmp_path.name), ModelsConfig(root=tmp_path.parent))
    assert whole.weights == network.weights
    assert whole.architecture == network.architecture


@pytest.mark.parametrize("make", [*FAMILIES.values(), *MIXTURES.values()], ids=[*FAMILIES, *MIXTURES])
def test_a_configuration_alone_tells_what_the_network_has(make: Callable[[], Any], tmp_path: Path) -> None:
    config = make()
    config.save_pretrained(tmp_path)
    networks: Any = transformers.AutoModelForCausalLM
    model = networks.from_config(config)
    weights = size_of(NetworkConfig(source=str(tmp_path)), ModelsConfig()).weights
    assert weights.num_parameters == sum(weight.numel() for weight in model.parameters())
    assert (weights.num_active < weights.num_parameters) is (make in MIXTURES.values())


def test_what_a_machine_lacks_is_not_asked_for(tmp_path: Path) -> None:
    facts = MIXTURES["mixtral"]().to_dict()
    (tmp_path / "config.json").write_text(json.dumps(facts | {"attn_implementation": "flash_attention_2"}))
    assert size_of(NetworkConfig(source=str(tmp_path)), ModelsConfig()).weights.num_parameters > 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3-moe", "deepseek-v3"])
def test_keys_are_those_that_the_engine_keeps(family: str, tmp_path: Path) -> None:
    folder = save_network(tmp_path / "network", (FAMILIES | MIXTURES)[family](), 1)
    engine = Engine(join_networks([load(folder)]), EngineConfig(kv_memory_bytes=2**22))
    size = size_of(NetworkConfig(source=str(folder)), ModelsConfig())
    assert 4 * size.architecture.num_kept_per_token == engine._runner.bytes_per_token


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen2-moe", "deepseek-v3"])
def test_an_adapter_has_as_many_weights_as_peft_makes(family: str) -> None:
    pytest.importorskip("peft")
    networks: Any = transformers.AutoModelForCausalLM
    config = (FAMILIES | MIXTURES)[family]()
    with torch.device("meta"):
        size = size_of_blueprint(networks.from_config(config).requires_grad_(False))
    model = networks.from_config(config)
    adapted = add_lora(model, LoraSettings(rank=3))
    assert size.num_lora(LoraSettings(rank=3)) == sum(
        weight.numel() for weight in adapted.parameters() if weight.requires_grad
    )


def test_a_network_that_is_not_there_yet_is_like_another() -> None:
    unmade = NetworkConfig(source="runs/sft/model")
    assert size_of(unmade, ModelsConfig(), size_like("Qwen2.5-7B-Instruct")) == size_like("Qwen2.5-7B")
    assert size_of(NetworkConfig(source="a/Qwen2.5-3B"), ModelsConfig(), size_like("Qwen2.5-7B")) == size_like(
        "Qwen2.5-3B"
    )
    with pytest.raises(ConfigError, match="size of 'Qwen9' is not known; known are Llama"):
        size_like("Qwen9")


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"the size of 'nobody/knows-7B' is not known: .* fetch its config.json, or say"
    ):
        size_of(NetworkConfig(source="nobody/knows-7B"), ModelsConfig())


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"num_attention_heads": 0, "hidden_size": 8}),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_configuration_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="does not give the sizes of a decoder"):
        size_of(NetworkConfig(source=str(tmp_path)), ModelsConfig())


WHOLE = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    ("content", "unstated"),
    [
        (WHOLE, []),
        (
            {name: WHOLE[name] for name in ("model_type", "hidden_size", "num_attention_heads")},
            ["num_hidden_layers = 32", "intermediate_size = 11008", "vocab_size = 32000"],
        ),
        ({"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2}, ["vocab_size = 50257"]),
        (
            {"model_type": "gemma3", "text_config": {**WHOLE, "model_type": "gemma3_text"} | {"vocab_size": 262_208}},
            [],
        ),
    ],
    ids=["whole", "cut down", "in other words", "of text and pictures"],
)
def test_sizes_that_nobody_has_stated_are_told(
    tmp_path: Path, content: dict[str, Any], unstated: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps(content))
    told = tuple(f"{size} of net" for size in unstated)
    assert size_of(NetworkConfig(source=str(tmp_path / "net")), ModelsConfig()).unstated == told
    command = ["estimate", "training", "--num", "10", "--accelerator", "H100", "--prompt-tokens", "20"]
    assert main([*command, "--set", f"models.strong.source={tmp_path / 'net'}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("Not in config.json, and so what transformers takes: " + ", ".join(told) in shown) == bool(told)


def test_weights_of_a_small_decoder_by_hand() -> None:
    # 1 layer, 4 wide, 2 heads of 2, 1 key-value head, feed-forward 8, 10 words, own head, biases of queries and keys
    config = transformers.Qwen2Config(
        num_hidden_layers=1,
        hidden_size=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=8,
        vocab_size=10,
    )
    networks: Any = transformers.AutoModelForCausalLM
    weights = size_of_blueprint(networks.from_config(config)).weights
    attention, feed_forward = 4 * 4 + 2 * (4 * 2) + 4 * 4, 3 * 4 * 8
    assert weights.num_body == attention + feed_forward == 144
    assert weights.num_parameters == 144 + (4 + 2 + 2) + 3 * 4 + 2 * 40
