"""A network loads to what transformers loads, with its facts, and anything unsuitable is refused by name."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cong.errors import ArtefactMissing, ConfigError, ModelError, UnsupportedModel
from cong.models import Network, fingerprint_weights, load_network, save_network

MakeNetwork = Callable[..., Path]


def _load(folder: Path, dtype: str = "float32", device: str = "cpu") -> Network:
    return load_network(str(folder), role="base", dtype=dtype, device=device)


def _edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "REMOVED"}))


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.arange(12).reshape(2, 6)).logits
    return logits


def test_saving_a_network_prints_nothing(llama_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cong.models import load_network, save_network\n"
        "network = load_network(sys.argv[1], role='base', dtype='float32', device='cpu')\n"
        "save_network(network, Path(sys.argv[2]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(llama_folder), str(tmp_path / "saved")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert (tmp_path / "saved" / "model.safetensors").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_loaded_network_computes_what_transformers_computes(llama_folder: Path, dtype: str) -> None:
    network = _load(llama_folder, dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(llama_folder, dtype=getattr(torch, dtype))
    assert torch.equal(_logits(network.model), _logits(theirs))
    assert {parameter.dtype for parameter in network.model.parameters()} == {network.dtype}
    assert network.own_bytes == network.num_parameters * network.dtype.itemsize


def test_a_loaded_network_is_frozen_and_evaluates(llama: Network) -> None:
    assert not llama.model.training
    assert not any(parameter.requires_grad for parameter in llama.model.parameters())


def test_the_facts_are_those_of_the_configuration(llama: Network) -> None:
    facts = llama.architecture
    assert (facts.model_type, facts.num_layers, facts.num_heads, facts.num_kv_heads) == ("llama", 2, 4, 2)
    assert (facts.head_dim, facts.vocab_width, facts.context_length) == (8, 300, 64)
    assert facts.layer_kinds == ("full_attention", "full_attention")
    assert not facts.is_recurrent
    assert llama.name == "tiny-llama"
    assert llama.identity.model_dump() == {"role": "base", "name": "tiny-llama", "fingerprint": llama.fingerprint}


def test_sharded_and_tied_weights_load_the_same(make_network: MakeNetwork, tmp_path: Path) -> None:
    folder = make_network("tied", tied=True)
    whole = _load(folder)
    assert whole.model.get_parameter("lm_head.weight") is whole.model.get_parameter("model.embed_tokens.weight")
    sharded_folder = Path(shutil.copytree(folder, tmp_path / "sharded"))
    (sharded_folder / "model.safetensors").unlink()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(sharded_folder, max_shard_size="20KB")
    sharded = _load(sharded_folder)
    assert torch.equal(_logits(sharded.model), _logits(whole.model))
    assert (sharded.fingerprint, sharded.own_bytes) == (whole.fingerprint, whole.own_bytes)


def test_a_loaded_network_outlives_its_file(llama_copy: Path) -> None:
    network = _load(llama_copy)
    before = _logits(network.model)
    path = llama_copy / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(8)
        file.truncate(10**6)
    assert torch.equal(_logits(network.model), before)


def test_ends_of_sequence_are_those_that_the_artefact_states(llama_copy: Path) -> None:
    _edit(llama_copy / "generation_config.json", eos_token_id=[3, 4])
    assert _load(llama_copy).eos_ids == {1, 3, 4}
    # The library's default for a Llama is 2; a configuration that says nothing does not mean it.
    _edit(llama_copy / "config.json", eos_token_id="REMOVED")
    _edit(llama_copy / "generation_config.json", eos_token_id="REMOVED")
    assert _load(llama_copy).eos_ids == {4}


def test_an_implementation_that_a_configuration_asks_for_is_ignored(llama_copy: Path) -> None:
    _edit(llama_copy / "config.json", _attn_implementation="flash_attention_2")
    assert _load(llama_copy).model.get_parameter("lm_head.weight").shape == (300, 32)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "no-such-type"}, "cannot read its config.json"),
        ({"hidden_size": "wide"}, "cannot read its config.json"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "no language-model head"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "encoder-decoder"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "attends to both sides"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"], "is_decoder": True}, "no language-model head"),
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, "no causal language model of type 'clip'"),
    ],
    ids=["unknown", "invalid", "classifier", "quantized", "t5", "bart", "encoder", "masked", "clip"],
)
def test_an_unsuitable_architecture_is_refused_by_name(llama_copy: Path, changes: dict[str, Any], reason: str) -> None:
    _edit(llama_copy / "config.json", **changes)
    with pytest.raises(UnsupportedModel, match=reason):
        _load(llama_copy)


def test_gpt_neox_is_a_decoder_although_its_configuration_denies_it(tokenizer_folder: Path, tmp_path: Path) -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model: Any = transformers.GPTNeoXForCausalLM(config)
    model.save_pretrained(tmp_path)
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    network = _load(tmp_path)
    assert (network.architecture.num_kv_heads, network.architecture.head_dim) == (2, 8)


def test_a_recurrent_network_loads_and_says_so(recurrent_folder: Path) -> None:
    facts = _load(recurrent_folder).architecture
    assert facts.is_recurrent
    assert facts.layer_kinds == ("linear_attention", "full_attention")


def test_a_purely_recurrent_network_loads_and_says_so(tokenizer_folder: Path, tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    model: Any = transformers.MambaForCausalLM(config)
    model.save_pretrained(tmp_path)
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    facts = _load(tmp_path).architecture
    assert facts.is_recurrent
    assert (facts.num_heads, facts.num_kv_heads) == (0, 0)


def test_weights_that_lack_a_tensor_are_refused_rather_than_made_up(llama_copy: Path) -> None:
    _edit(llama_copy / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match="lacks 9 tensors"):
        _load(llama_copy)


def test_weights_of_another_shape_are_refused(llama_copy: Path) -> None:
    _edit(llama_copy / "config.json", intermediate_size=64)
    with pytest.raises(ModelError, match="tiny-llama"):
        _load(llama_copy)


def test_unused_tensors_are_reported(llama_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    _edit(llama_copy / "config.json", num_hidden_layers=1)
    _load(llama_copy)
    assert "9 stored tensors are not used" in caplog.text


def test_a_folder_without_a_configuration_is_named(tokenizer_folder: Path, llama_copy: Path) -> None:
    (llama_copy / "config.json").unlink()
    with pytest.raises(ArtefactMissing, match=r"no config\.json"):
        _load(llama_copy)


@pytest.mark.parametrize(
    ("dtype", "device", "reason"),
    [
        ("fp32", "cpu", "dtype is 'fp32'; it must be one of float32, bfloat16, float16"),
        ("float32", "gpu", "device is 'gpu'"),
        ("float32", "meta", "device is 'meta'"),
        ("float32", "cuda:99", "device is 'cuda:99', and torch sees"),
    ],
)
def test_a_wrong_dtype_or_device_is_refused(llama_folder: Path, dtype: str, device: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        _load(llama_folder, dtype, device)


def test_a_saved_network_is_the_network(llama_folder: Path, llama: Network, tmp_path: Path) -> None:
    save_network(llama, tmp_path / "out" / "saved")
    saved = _load(tmp_path / "out" / "saved")
    assert saved.fingerprint == llama.fingerprint == fingerprint_weights(llama_folder)
    assert saved.tokenizer.fingerprint == llama.tokenizer.fingerprint
    assert saved.eos_ids == llama.eos_ids
    assert torch.equal(_logits(saved.model), _logits(llama.model))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["saved"]
    with pytest.raises(ConfigError, match="exists"):
        save_network(llama, tmp_path / "out" / "saved")


def test_a_replaced_template_is_saved_with_the_network(llama_folder: Path, tmp_path: Path) -> None:
    template = "{{ messages[0].content }}"
    network = load_network(str(llama_folder), role="base", dtype="float32", device="cpu", chat_template=template)
    save_network(network, tmp_path / "saved")
    saved = _load(tmp_path / "saved")
    assert saved.tokenizer.chat_template == template
    assert saved.tokenizer.fingerprint == network.tokenizer.fingerprint


def test_a_trained_network_has_another_fingerprint(llama_folder: Path, tmp_path: Path) -> None:
    network = _load(llama_folder)
    network.model.train().requires_grad_(True)
    loss = network.model(input_ids=torch.arange(6)[None], labels=torch.arange(6)[None]).loss
    loss.backward()
    torch.optim.SGD(network.model.parameters(), lr=0.1).step()
    save_network(network, tmp_path / "trained")
    assert fingerprint_weights(tmp_path / "trained") != network.fingerprint


def test_loading_is_quiet_and_leaves_the_library_s_settings_alone(
    llama_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logging: Any = transformers.utils.logging
    logging.enable_progress_bar()
    before = logging.get_verbosity()
    _load(llama_folder)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (before, True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_on_a_device_computes_what_the_host_computes(llama_folder: Path, dtype: str) -> None:
    on_host, on_device = _load(llama_folder, dtype), _load(llama_folder, dtype, "cuda")
    assert {parameter.device.type for parameter in on_device.model.parameters()} == {"cuda"}
    with torch.inference_mode():
        logits = on_device.model(input_ids=torch.arange(12, device="cuda").reshape(2, 6)).logits.cpu()
    tolerance = 1e-4 if dtype == "float32" else 0.1
    torch.testing.assert_close(logits, _logits(on_host.model), atol=tolerance, rtol=tolerance)


def test_importing_models_imports_no_distributed_library() -> None:
    program = (
        "import sys, cong.models; print([name for name in ('ray', 'peft', 'deepspeed', 'trl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
