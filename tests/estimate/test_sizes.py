"""Sizes of networks: known totals, agreement with real networks, refusals."""

import json
from pathlib import Path

import pytest

import cong
from cong.config.models import ModelsConfig, NetworkConfig
from cong.config.train import LoraSettings
from cong.errors import ConfigError
from cong.estimate.network_size import PUBLIC, NetworkSize, size_like, size_of
from cong.models import load_network
from cong.train.lora import add_lora

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
    ],
)
def test_public_networks_have_as_many_weights_as_published(name: str, num_parameters: int) -> None:
    assert PUBLIC[name].num_parameters == num_parameters


def test_keys_of_a_token_are_counted_by_hand() -> None:
    # 28 layers, 8 heads of 128, keys and values
    assert PUBLIC["Llama-3.2-3B"].num_keys_per_token == 2 * 28 * 8 * 128 == 57_344


@pytest.mark.parametrize("name", ["weak_base", "strong_base"])
def test_a_folder_is_counted_like_the_network_in_it(name: str, tmp_path: Path) -> None:
    network = load_network(str(ASSETS / name), role="base", dtype="float32", device="cpu")
    weights = {id(weight): weight.numel() for weight in network.model.parameters()}
    size = size_of(NetworkConfig(source=str(ASSETS / name)), ModelsConfig())
    assert size.stated_parameters == size.num_parameters == sum(weights.values())
    (tmp_path / "config.json").write_text((ASSETS / name / "config.json").read_text())
    formula = size_of(NetworkConfig(source=tmp_path.name), ModelsConfig(root=tmp_path.parent))
    assert formula.stated_parameters == 0
    assert formula.num_parameters == size.num_parameters


def test_an_adapter_has_as_many_weights_as_peft_makes() -> None:
    pytest.importorskip("peft")
    network = load_network(str(ASSETS / "weak_base"), role="base", dtype="float32", device="cpu")
    adapted = add_lora(network.model, LoraSettings(rank=3))
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert size_of(NetworkConfig(source=str(ASSETS / "weak_base")), ModelsConfig()).num_lora(3) == trained


def test_a_network_that_is_not_there_yet_is_like_another() -> None:
    unmade = NetworkConfig(source="runs/sft/model")
    assert size_of(unmade, ModelsConfig(), size_like("Qwen2.5-7B-Instruct")) == PUBLIC["Qwen2.5-7B"]
    assert size_of(NetworkConfig(source="a/Qwen2.5-3B"), ModelsConfig(), PUBLIC["Qwen2.5-7B"]) == PUBLIC["Qwen2.5-3B"]
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


def test_weights_of_a_small_decoder_by_hand() -> None:
    # 1 layer, 4 wide, 2 heads of 2, 1 key-value head, feed-forward 8, 10 words, own head
    size = NetworkSize(1, 4, 2, 1, 2, 8, 10, is_tied=False, has_qkv_bias=True)
    attention, feed_forward = 4 * 4 + 2 * (4 * 2) + 4 * 4, 3 * 4 * 8
    assert size.num_layer_matrices == attention + feed_forward == 144
    assert size.num_parameters == 144 + (4 + 2 + 2) + 3 * 4 + 2 * 40
