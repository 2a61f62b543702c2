"""A fingerprint changes with every byte that matters, and with nothing else."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cong.errors import ArtefactMissing
from cong.models import fingerprint_adapter, fingerprint_tokenizer, fingerprint_weights, load_tokenizer, read_tensors
from cong.models.fingerprint import BLOCK_BYTES

AT_LEAST_TWO_BLOCKS = BLOCK_BYTES + 4096

fast = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def bytes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of which one tensor spans two hashed blocks, and one is empty."""
    folder = tmp_path_factory.mktemp("bytes")
    large = torch.randint(0, 256, (AT_LEAST_TWO_BLOCKS,), dtype=torch.uint8)
    save_file(
        {"large": large, "small": torch.tensor([1.0, -1.0]), "none": torch.zeros(0)}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "rope_theta": 10000.0, "sliding_window": None}))
    return folder


def test_a_fingerprint_is_the_same_everywhere_and_always(tmp_path: Path) -> None:
    save_file({"w": torch.arange(4.0), "b": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_layers": 2, "model_type": "x"}')
    digests = {
        name: hashlib.sha256(hashlib.sha256(struct.pack(f"<{len(values)}f", *values)).digest()).hexdigest()
        for name, values in (("b", [1.0] * 6), ("w", [0.0, 1.0, 2.0, 3.0]))
    }
    spelled = (
        f'[{{"model_type":"x","num_layers":2}},[["b","F32",[2,3],"{digests["b"]}"],["w","F32",[4],"{digests["w"]}"]]]'
    )
    assert fingerprint_weights(tmp_path) == "w1-" + hashlib.sha256(spelled.encode()).hexdigest()[:40]
    assert fingerprint_weights(tmp_path) == "w1-2aba489ebc469e173445d816626b356bd6c7d03a"


@fast
@given(data=st.data())
def test_changing_any_byte_of_any_tensor_changes_it(bytes_folder: Path, data: st.DataObject) -> None:
    path = bytes_folder / "model.safetensors"
    before = fingerprint_weights(bytes_folder)
    tensor = data.draw(st.sampled_from([tensor for tensor in read_tensors([path]) if tensor.end > tensor.start]))
    edges = [tensor.start, tensor.end - 1, min(tensor.start + BLOCK_BYTES, tensor.end - 1)]
    offset = data.draw(st.sampled_from(edges) | st.integers(tensor.start, tensor.end - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    with path.open("r+b") as file:
        file.seek(offset)
        original = file.read(1)
        try:
            file.seek(offset)
            file.write(bytes([original[0] ^ bit]))
            file.flush()
            assert fingerprint_weights(bytes_folder) != before
        finally:
            file.seek(offset)
            file.write(original)
    assert fingerprint_weights(bytes_folder) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {**tensors, "extra": torch.zeros(1)},
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "small"},
        lambda tensors: {**tensors, "small": tensors["small"].reshape(2, 1)},
        lambda tensors: {**tensors, "small": tensors["small"].view(torch.int32)},
        lambda tensors: {("little" if name == "small" else name): tensor for name, tensor in tensors.items()},
    ],
    ids=["added", "removed", "reshaped", "retyped", "renamed"],
)
def test_changing_the_set_of_tensors_changes_it(
    bytes_folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    shutil.copytree(bytes_folder, tmp_path, dirs_exist_ok=True)
    save_file(change(load_file(tmp_path / "model.safetensors")), tmp_path / "model.safetensors")
    assert fingerprint_weights(tmp_path) != fingerprint_weights(bytes_folder)


@pytest.mark.parametrize("shard_size", ["1KB", "20KB", "1GB"])
def test_sharding_copying_and_renaming_do_not_change_it(llama_folder: Path, tmp_path: Path, shard_size: str) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(llama_folder)
    model.save_pretrained(tmp_path / "other-name", max_shard_size=shard_size)
    num_files = len(list((tmp_path / "other-name").glob("*.safetensors")))
    assert (num_files == 1) == (shard_size == "1GB")
    assert fingerprint_weights(tmp_path / "other-name") == fingerprint_weights(llama_folder)


@pytest.mark.parametrize(
    "change",
    [
        {"_name_or_path": "/some/where"},
        {"transformers_version": "4.0.0"},
        {"torch_dtype": "float16"},
        {"use_cache": False},
        {"eos_token_id": [7, 8]},
        {"rope_theta": 10000},
        {"architectures": ["XForCausalLM"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_without_influence_on_logits_do_not_change_it(
    bytes_folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    shutil.copytree(bytes_folder, tmp_path, dirs_exist_ok=True)
    _edit(tmp_path / "config.json", **change)
    assert fingerprint_weights(tmp_path) == fingerprint_weights(bytes_folder)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 10000.5},
        {"sliding_window": 16},
        {"rms_norm_eps": 1e-5},
        {"model_type": "y"},
        {"hidden_act": "gelu"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_that_act_on_logits_change_it(bytes_folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    shutil.copytree(bytes_folder, tmp_path, dirs_exist_ok=True)
    _edit(tmp_path / "config.json", **change)
    assert fingerprint_weights(tmp_path) != fingerprint_weights(bytes_folder)


def test_weights_cut_short_have_no_fingerprint(llama_copy: Path) -> None:
    path = llama_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtefactMissing, match="cut short"):
        fingerprint_weights(llama_copy)


def test_a_tokenizer_saved_again_has_the_same_fingerprint(tokenizer_folder: Path, tmp_path: Path) -> None:
    load_tokenizer(str(tokenizer_folder)).backend.save_pretrained(tmp_path / "again")
    assert fingerprint_tokenizer(tmp_path / "again") == fingerprint_tokenizer(tokenizer_folder)


def test_the_state_and_spelling_of_a_tokenizer_do_not_change_its_fingerprint(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["version"] = "9"
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    content["model"]["vocab"] = dict(sorted(content["model"]["vocab"].items(), reverse=True))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content, indent=1))
    _edit(tmp_path / "tokenizer_config.json", model_max_length=7, tokenizer_class="PreTrainedTokenizerFast")
    assert fingerprint_tokenizer(tmp_path) == fingerprint_tokenizer(tokenizer_folder)


def _swap_two_ids(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def _drop_a_merge(content: dict[str, Any]) -> None:
    content["model"]["merges"].pop()


def _drop_the_prefix(content: dict[str, Any]) -> None:
    content["post_processor"] = None


def _make_ordinary(content: dict[str, Any]) -> None:
    content["added_tokens"][2]["special"] = False


@pytest.mark.parametrize("change", [_swap_two_ids, _drop_a_merge, _drop_the_prefix, _make_ordinary])
def test_changing_what_a_tokenizer_does_changes_its_fingerprint(
    tokenizer_folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert fingerprint_tokenizer(tmp_path) != fingerprint_tokenizer(tokenizer_folder)


def test_special_tokens_and_templates_are_part_of_a_tokenizer(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    seen = {fingerprint_tokenizer(tmp_path), fingerprint_tokenizer(tmp_path, "{{ messages }}")}
    _edit(tmp_path / "tokenizer_config.json", eos_token="<|end|>")
    seen.add(fingerprint_tokenizer(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0] }}")
    seen.add(fingerprint_tokenizer(tmp_path))
    assert len(seen) == 4


_THOUGHT = {"content": "<thought>", "special": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": {"290": _THOUGHT}},
        {"added_tokens_decoder": {"2": {**_THOUGHT, "content": "<|head|>"}}},
        {"additional_special_tokens": ["<thought>"]},
        {"extra_special_tokens": {"thought_token": "<thought>"}},
        {"extra_special_tokens": ["the"]},
        {"sep_token": "<thought>"},
    ],
)
def test_tokens_that_only_the_settings_tell_of_are_part_of_a_tokenizer(
    tokenizer_folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    _edit(tmp_path / "tokenizer_config.json", **settings)
    plain, changed = load_tokenizer(str(tokenizer_folder)), load_tokenizer(str(tmp_path))
    assert (plain.token_to_id, plain.special_ids) != (changed.token_to_id, changed.special_ids)
    assert plain.fingerprint != changed.fingerprint


def test_what_the_settings_say_of_tokens_once_more_changes_nothing(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    decoder = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}
    _edit(
        tmp_path / "tokenizer_config.json",
        added_tokens_decoder=decoder,
        additional_special_tokens=["<|head|>", "<|turn|>"],
    )
    assert fingerprint_tokenizer(tmp_path) == fingerprint_tokenizer(tokenizer_folder)


def test_a_token_is_the_same_in_both_of_its_spellings(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    _edit(tmp_path / "tokenizer_config.json", eos_token={"content": "<|turn|>", "lstrip": False, "rstrip": False})
    assert fingerprint_tokenizer(tmp_path) == fingerprint_tokenizer(tokenizer_folder)


def test_a_tokenizer_of_plain_files_is_known_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").write_text("a b\n")
    before = fingerprint_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("b a\n")
    assert fingerprint_tokenizer(tmp_path) != before


def test_an_adapter_is_known_by_its_tensors_and_its_scaling(tmp_path: Path) -> None:
    save_file({"x.lora_A.weight": torch.ones(2, 4)}, tmp_path / "adapter_model.safetensors")
    config = tmp_path / "adapter_config.json"
    config.write_text(
        json.dumps({"r": 2, "lora_alpha": 4, "target_modules": ["a", "b"], "base_model_name_or_path": "x"})
    )
    before = fingerprint_adapter(tmp_path)
    _edit(config, target_modules=["b", "a"], base_model_name_or_path="/elsewhere", inference_mode=False)
    assert fingerprint_adapter(tmp_path) == before
    _edit(config, lora_alpha=8)
    assert fingerprint_adapter(tmp_path) != before
