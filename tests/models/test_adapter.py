"""An adapter gives what peft gives, shares its base's memory if asked to, and is refused on any other base."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cong.errors import AdapterMismatch, ArtefactMissing, ConfigError, MissingExtra, UnsafeArtefact, UnsupportedModel
from cong.models import Network, attach_adapter, join_networks, load_network, render_text, save_network
from cong.schemas import Message

MakeNetwork = Callable[..., Path]


@contextmanager
def _peft_warnings_ignored() -> Iterator[None]:
    """peft asks transformers for names that are being retired, and tells what it saves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _save_adapter(base: Path, folder: Path, *, seed: int = 1, **settings: Any) -> Path:
    """A LoRA adapter that changes what its base says, made by peft."""
    torch.manual_seed(seed)
    common: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    config = peft.LoraConfig(**(common | {"init_lora_weights": False} | settings))
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with _peft_warnings_ignored():
        peft.get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _load(folder: Path, **options: Any) -> Network:
    return load_network(str(folder), **({"role": "base", "dtype": "float32", "device": "cpu"} | options))


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.arange(12).reshape(2, 6)).logits
    return logits


def _peft_logits(base: Path, adapter: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with _peft_warnings_ignored():
        return _logits(peft.PeftModel.from_pretrained(model, adapter))


@pytest.fixture(scope="module")
def adapter_folder(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the shared network."""
    return _save_adapter(llama_folder, tmp_path_factory.mktemp("adapter") / "lora")


@pytest.fixture
def adapter_copy(adapter_folder: Path, tmp_path: Path) -> Path:
    """The adapter in a folder that the test may spoil."""
    return Path(shutil.copytree(adapter_folder, tmp_path / "lora"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"q_proj": 2}},
        {"use_dora": True},
        {"target_modules": ["embed_tokens", "down_proj"]},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=["plain", "patterns", "dora", "embeddings", "whole-modules"],
)
def test_attached_and_merged_adapters_compute_what_peft_computes(
    llama_folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapter = _save_adapter(llama_folder, tmp_path / "lora", **settings)
    # What was stored whole differs from the base's own, which must stay as it is.
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor if ".lora_" in name else -tensor for name, tensor in load_file(path).items()}, path)
    expected = _peft_logits(llama_folder, adapter)
    base = _load(llama_folder)
    plain = _logits(base.model)
    assert (expected - plain).abs().max() > 0.01
    attached = attach_adapter(base, str(adapter), role="aligned")
    torch.testing.assert_close(_logits(attached.model), expected)
    merged = _load(llama_folder, adapter=str(adapter))
    torch.testing.assert_close(_logits(merged.model), expected)
    assert torch.equal(_logits(base.model), plain)


def test_a_pair_keeps_one_copy_of_the_base(llama_folder: Path, adapter_folder: Path) -> None:
    base = _load(llama_folder)
    aligned = attach_adapter(base, str(adapter_folder), role="aligned")
    theirs = {parameter.data_ptr() for parameter in aligned.model.parameters()}
    assert {parameter.data_ptr() for parameter in base.model.parameters()} < theirs
    num_adapter_parameters = 2 * (32 * 4 + 4 * 32 + 32 * 4 + 4 * 16)
    assert aligned.own_bytes == 4 * num_adapter_parameters
    assert aligned.num_parameters == base.num_parameters + num_adapter_parameters
    assert aligned.base_fingerprint == base.fingerprint
    pair = join_networks([aligned, base])
    assert pair.own_bytes == 4 * aligned.num_parameters
    # Neither order of calls matters, since nothing is switched on or off.
    first, second = _logits(base.model), _logits(aligned.model)
    assert torch.equal(_logits(aligned.model), second)
    assert torch.equal(_logits(base.model), first)
    assert not any(parameter.requires_grad for parameter in aligned.model.parameters())


def test_the_two_trees_choose_their_attention_apart(llama_folder: Path, adapter_folder: Path) -> None:
    base = _load(llama_folder)
    aligned = attach_adapter(base, str(adapter_folder), role="aligned")
    model: Any = aligned.model
    model.set_attn_implementation("eager")
    theirs: Any = base.model
    assert (model.config._attn_implementation, theirs.config._attn_implementation) == ("eager", "sdpa")


def test_an_adapter_runs_in_the_dtype_of_its_base(llama_folder: Path, adapter_folder: Path) -> None:
    base = _load(llama_folder, dtype="bfloat16")
    aligned = attach_adapter(base, str(adapter_folder), role="aligned")
    assert {parameter.dtype for parameter in aligned.model.parameters()} == {torch.bfloat16}
    assert _logits(aligned.model).dtype == torch.bfloat16


def test_merged_attached_and_bare_networks_are_told_apart(
    llama_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    base = _load(llama_folder)
    attached = attach_adapter(base, str(adapter_folder), role="aligned")
    merged = _load(llama_folder, adapter=str(adapter_folder), role="aligned")
    other = attach_adapter(base, str(_save_adapter(llama_folder, tmp_path / "other", seed=2)), role="aligned")
    assert attached.fingerprint == merged.fingerprint
    assert len({base.fingerprint, attached.fingerprint, other.fingerprint}) == 3
    assert attached.name == merged.name == "tiny-llama+lora"
    assert (merged.base_fingerprint, merged.own_bytes) == (None, base.own_bytes)


def test_a_merged_network_can_be_saved_and_a_sharing_one_cannot(
    llama_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    merged = _load(llama_folder, adapter=str(adapter_folder))
    save_network(merged, tmp_path / "merged")
    assert torch.equal(_logits(_load(tmp_path / "merged").model), _logits(merged.model))
    attached = attach_adapter(_load(llama_folder), str(adapter_folder), role="aligned")
    with pytest.raises(ConfigError, match="shares the weights of its base"):
        save_network(attached, tmp_path / "shared")
    with pytest.raises(ConfigError, match="already has an adapter"):
        attach_adapter(attached, str(adapter_folder), role="strong")


def test_an_adapter_may_bring_its_own_template(llama_folder: Path, tokenizer_folder: Path, adapter_copy: Path) -> None:
    shutil.copytree(tokenizer_folder, adapter_copy, dirs_exist_ok=True)
    (adapter_copy / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    aligned = _load(llama_folder, adapter=str(adapter_copy))
    assert render_text(aligned.tokenizer, [Message(role="user", content="cat")]) == "cat!"


@pytest.mark.parametrize(
    "settings",
    [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"hidden_size": 64}, {"num_key_value_heads": 4}],
    ids=lambda settings: next(iter(settings)) + str(next(iter(settings.values()))),
)
def test_an_adapter_of_a_base_of_another_shape_is_refused(
    make_network: MakeNetwork, adapter_copy: Path, settings: dict[str, int]
) -> None:
    _edit(adapter_copy / "adapter_config.json", base_model_name_or_path="gone")
    base = make_network("other", **settings)
    with pytest.raises(AdapterMismatch, match="trained on"):
        _load(base, adapter=str(adapter_copy))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("model.norm.lora_A", (4, 32)), ("model.layers.0.self_attn.q_proj.lora_A", (4,)), ("model.gone.lora_A", (4, 32))],
)
def test_a_tensor_that_fits_no_layer_is_named(
    llama_folder: Path, adapter_copy: Path, name: str, shape: tuple[int, ...]
) -> None:
    path = adapter_copy / "adapter_model.safetensors"
    save_file({**load_file(path), f"base_model.model.{name}.weight": torch.zeros(shape)}, path)
    with pytest.raises(AdapterMismatch, match=f"{name}.weight of shape"):
        _load(llama_folder, adapter=str(adapter_copy))


def test_an_adapter_of_a_base_with_other_weights_is_refused(make_network: MakeNetwork, adapter_folder: Path) -> None:
    with pytest.raises(AdapterMismatch, match=r"was trained on .*tiny-llama, which is not other"):
        _load(make_network("other", seed=5), adapter=str(adapter_folder))


def test_an_adapter_of_a_copied_base_is_accepted_quietly(
    llama_copy: Path, adapter_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = llama_copy.rename(llama_copy.parent / "moved")
    _load(moved, adapter=str(adapter_folder))
    assert caplog.text == ""


def test_a_base_that_cannot_be_compared_is_reported(
    llama_folder: Path, adapter_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _edit(adapter_copy / "adapter_config.json", base_model_name_or_path="org/some-model")
    _load(llama_folder, adapter=str(adapter_copy))
    assert "its base is 'org/some-model'" in caplog.text
    caplog.clear()
    _edit(adapter_copy / "adapter_config.json", base_model_name_or_path="/gone/tiny-llama")
    _load(llama_folder, adapter=str(adapter_copy))
    assert caplog.text == ""


def test_a_root_keeps_the_folder_that_an_adapter_names_closed(
    llama_copy: Path, make_network: MakeNetwork, adapter_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_network("other", seed=5)
    _edit(adapter_copy / "adapter_config.json", base_model_name_or_path=str(other))
    _load(llama_copy, adapter=str(adapter_copy), root=llama_copy.parent)
    assert "cannot be checked" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "of type 'IA3'"),
        ({"init_lora_weights": "pissa"}, "initialised by 'pissa'"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"bias": "all"}, "sets bias"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_more_than_lora_is_refused(
    llama_folder: Path, adapter_copy: Path, changes: dict[str, Any], reason: str
) -> None:
    _edit(adapter_copy / "adapter_config.json", **changes)
    with pytest.raises(UnsupportedModel, match=reason):
        _load(llama_folder, adapter=str(adapter_copy))


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def test_a_revision_of_a_local_adapter_is_refused(llama_folder: Path, adapter_folder: Path) -> None:
    with pytest.raises(ConfigError, match="revision 'v1' is for hub ids"):
        _load(llama_folder, adapter=str(adapter_folder), adapter_revision="v1")
    with pytest.raises(ConfigError, match="revision 'v1' is for hub ids"):
        attach_adapter(_load(llama_folder), str(adapter_folder), role="aligned", revision="v1")


def test_a_pickled_adapter_is_refused_unread(llama_folder: Path, adapter_copy: Path, tmp_path: Path) -> None:
    (adapter_copy / "adapter_model.safetensors").unlink()
    torch.save(_Bomb(tmp_path / "canary"), adapter_copy / "adapter_model.bin")
    with pytest.raises(UnsafeArtefact, match="only as pickle"):
        _load(llama_folder, adapter=str(adapter_copy))
    assert not (tmp_path / "canary").exists()


def test_an_adapter_that_names_a_library_to_import_is_refused(llama_folder: Path, adapter_copy: Path) -> None:
    _edit(adapter_copy / "adapter_config.json", auto_mapping={"parent_library": "evil", "base_model_class": "Evil"})
    with pytest.raises(UnsafeArtefact, match="names the library 'evil'"):
        _load(llama_folder, adapter=str(adapter_copy))


def test_networks_and_adapters_are_not_mistaken_for_each_other(
    llama_folder: Path, llama_copy: Path, adapter_folder: Path
) -> None:
    with pytest.raises(ArtefactMissing, match=r"no adapter_config\.json"):
        _load(llama_folder, adapter=str(llama_folder))
    with pytest.raises(ArtefactMissing, match="give its base, and this folder as the adapter"):
        _load(adapter_folder)
    shutil.copy(adapter_folder / "adapter_config.json", llama_copy)
    with pytest.raises(ConfigError, match="a network and an adapter"):
        _load(llama_copy)


def test_without_peft_the_extra_is_named(
    llama_folder: Path, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    base = _load(llama_folder)
    with pytest.raises(MissingExtra, match=r"\.\[lora\]"):
        attach_adapter(base, str(adapter_folder), role="aligned")
