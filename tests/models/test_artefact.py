"""Artefacts are refused by name, each for its own reason, before anything of theirs could run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cong.errors import ArtefactMissing, ConfigError, UnsafeArtefact
from cong.models import load_network, load_tokenizer, open_artefact


def _edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def _load(folder: Path, **options: Any) -> None:
    load_network(str(folder), role="base", dtype="float32", device="cpu", **options)


def _plant_canary(folder: Path, canary: Path) -> None:
    """Code in every place that transformers would import it from, were remote code on."""
    code = f"open({str(canary)!r}, 'w').write('ran')\nclass Evil: pass\n"
    (folder / "custom_generate").mkdir(exist_ok=True)
    for path in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "custom_generate/generate.py"):
        (folder / path).write_text(code)


@pytest.mark.parametrize("source", ["/no/such/folder", "./no-such-folder", "a/b/c"])
def test_a_missing_path_is_named(source: str) -> None:
    with pytest.raises(ArtefactMissing, match="does not exist"):
        open_artefact(source)


def test_a_file_is_not_a_folder(llama_folder: Path) -> None:
    with pytest.raises(ArtefactMissing, match="is a file"):
        open_artefact(str(llama_folder / "config.json"))


def test_a_revision_of_a_folder_is_refused_rather_than_ignored(llama_folder: Path) -> None:
    with pytest.raises(ConfigError, match="revision 'main' is for hub ids"):
        open_artefact(str(llama_folder), revision="main")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}),
        ("config.json", {"auto_map": {"AutoConfig": "configuration_evil.Evil"}, "model_type": "evil"}),
        ("config.json", {"text_config": {"auto_map": {"AutoConfig": "configuration_evil.Evil"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}),
        ("generation_config.json", {"auto_map": {"GenerationConfig": "modeling_evil.Evil"}}),
        ("config.json", {"attn_implementation": "evil/kernel"}),
        ("config.json", {"_attn_implementation": "evil/kernel@v1:attend"}),
        ("config.json", {"_attn_implementation_internal": {"text_config": "evil/kernel"}}),
        ("config.json", {"experts_implementation": "evil/kernel"}),
        ("config.json", {"kernel_config": {"RMSNorm": "evil/kernel:RMSNorm"}}),
        ("config.json", {"use_kernels": True}),
        ("config.json", {"fusion_config": {"patch_embeddings": True}}),
        ("config.json", {"transformers_weights": "../elsewhere.bin"}),
        ("tokenizer_config.json", {"tokenizer_class": "AutoModelForCausalLM"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_code_named_by_a_configuration_is_refused_and_never_runs(
    llama_copy: Path, tmp_path: Path, file: str, content: dict[str, Any]
) -> None:
    canary = tmp_path / "canary"
    _plant_canary(llama_copy, canary)
    shutil.rmtree(llama_copy / "custom_generate")
    _edit(llama_copy / file, **content)
    with pytest.raises(UnsafeArtefact, match=next(iter(content)) if "text_config" not in content else "auto_map"):
        _load(llama_copy)
    assert not canary.exists()


def test_a_custom_generate_folder_is_refused_and_never_runs(llama_copy: Path, tmp_path: Path) -> None:
    _plant_canary(llama_copy, tmp_path / "canary")
    with pytest.raises(UnsafeArtefact, match="custom_generate"):
        _load(llama_copy)
    assert not (tmp_path / "canary").exists()


def test_code_that_nothing_names_is_left_alone(llama_copy: Path, tmp_path: Path) -> None:
    _plant_canary(llama_copy, tmp_path / "canary")
    shutil.rmtree(llama_copy / "custom_generate")
    _edit(llama_copy / "config.json", auto_map={}, _attn_implementation="flash_attention_2")
    _load(llama_copy)
    assert not (tmp_path / "canary").exists()


class _Bomb:
    """Unpickling it creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "pytorch_model-00001-of-00002.bin"])
def test_pickle_only_weights_are_refused_unread(llama_copy: Path, tmp_path: Path, name: str) -> None:
    (llama_copy / "model.safetensors").unlink()
    torch.save(_Bomb(tmp_path / "canary"), llama_copy / name)
    with pytest.raises(UnsafeArtefact, match="only as pickle"):
        _load(llama_copy)
    assert not (tmp_path / "canary").exists()


def test_a_pickle_beside_safetensors_is_never_opened(llama_copy: Path, tmp_path: Path) -> None:
    torch.save(_Bomb(tmp_path / "canary"), llama_copy / "pytorch_model.bin")
    _load(llama_copy)
    assert not (tmp_path / "canary").exists()


def test_missing_weights_are_named(llama_copy: Path) -> None:
    (llama_copy / "model.safetensors").unlink()
    with pytest.raises(ArtefactMissing, match=r"neither model\.safetensors nor"):
        _load(llama_copy)


@pytest.mark.parametrize("shard", ["../model.safetensors", "sub/model.safetensors", "/etc/passwd", "pytorch_model.bin"])
def test_an_index_may_only_name_safetensors_beside_it(llama_copy: Path, shard: str) -> None:
    (llama_copy / "model.safetensors").unlink()
    _edit(llama_copy / "model.safetensors.index.json", weight_map={"lm_head.weight": shard})
    with pytest.raises(UnsafeArtefact, match="beside the index"):
        _load(llama_copy)


def test_a_missing_shard_is_named(llama_copy: Path) -> None:
    (llama_copy / "model.safetensors").unlink()
    _edit(llama_copy / "model.safetensors.index.json", weight_map={"lm_head.weight": "model-7.safetensors"})
    with pytest.raises(ArtefactMissing, match=r"model-7\.safetensors"):
        _load(llama_copy)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff", "[" * 100_000])
def test_damaged_json_is_named(llama_copy: Path, text: str) -> None:
    (llama_copy / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtefactMissing, match=r"config\.json"):
        _load(llama_copy)


def test_a_root_confines_paths_links_and_hub_ids(llama_copy: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    inside = Path(shutil.copytree(llama_copy, root / "inside"))
    (root / "link").symlink_to(llama_copy)
    with pytest.raises(UnsafeArtefact, match=r"contains '\.\.'"):
        open_artefact("inside/../../tiny-llama", root=root)
    for source in ("link", str(llama_copy), "/etc"):
        with pytest.raises(UnsafeArtefact, match="outside the allowed root"):
            open_artefact(source, root=root)
    with pytest.raises(ArtefactMissing, match="hub ids are not looked up"):
        open_artefact("org/name", root=root)
    for source in ("inside", str(inside)):
        assert open_artefact(source, root=root).folder == inside.resolve()
    (inside / "model.safetensors").unlink()
    (inside / "model.safetensors").symlink_to(llama_copy / "model.safetensors")
    with pytest.raises(UnsafeArtefact, match=r"model\.safetensors leads to"):
        open_artefact("inside", root=root)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def hub_cache(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as the hub's client caches it: blobs, a snapshot of links, and a ref."""
    cache = tmp_path_factory.mktemp("hub")
    for repo, left_out in (("models--org--tiny", ""), ("models--org--torn", "model.safetensors")):
        snapshot = cache / repo / "snapshots" / COMMIT
        (cache / repo / "blobs").mkdir(parents=True)
        (cache / repo / "refs").mkdir()
        (cache / repo / "refs" / "main").write_text(COMMIT)
        snapshot.mkdir(parents=True)
        for path in llama_folder.iterdir():
            if path.name != left_out:
                shutil.copy(path, cache / repo / "blobs" / path.name)
                (snapshot / path.name).symlink_to(os.path.relpath(cache / repo / "blobs" / path.name, snapshot))
    return cache


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE=1 sets when the hub's client is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_hub_id_loads_offline(hub_cache: Path, llama_folder: Path, revision: str | None) -> None:
    artefact = open_artefact("org/tiny", revision=revision, cache_dir=hub_cache)
    assert artefact.name == "org/tiny"
    assert artefact.folder.name == COMMIT
    from_hub = load_network(
        "org/tiny", role="base", dtype="float32", device="cpu", revision=revision, cache_dir=hub_cache
    )
    from_folder = load_network(str(llama_folder), role="base", dtype="float32", device="cpu")
    assert from_hub.fingerprint == from_folder.fingerprint
    assert from_hub.tokenizer.fingerprint == load_tokenizer("org/tiny", cache_dir=hub_cache).fingerprint


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("source", "revision", "reason"),
    [
        ("org/unknown", None, "hf download org/unknown"),
        ("org/tiny", "other-branch", "org/tiny at revision other-branch"),
        ("unknown", None, "hf download unknown"),
        ("org/torn", None, "neither model.safetensors nor"),
    ],
)
def test_what_the_hub_does_not_give_is_missing_with_a_remedy(
    hub_cache: Path, source: str, revision: str | None, reason: str
) -> None:
    with pytest.raises(ArtefactMissing, match=reason):
        load_network(source, role="base", dtype="float32", device="cpu", revision=revision, cache_dir=hub_cache)


@pytest.mark.usefixtures("offline")
def test_a_tokenizer_is_loaded_from_the_hub_without_the_weights(hub_cache: Path, tokenizer_folder: Path) -> None:
    torn = load_tokenizer("org/torn", cache_dir=hub_cache)
    assert torn.fingerprint == load_tokenizer(str(tokenizer_folder)).fingerprint


def test_the_offline_variable_is_respected(hub_cache: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from cong.models.artefact import open_artefact\n"
        f"cache = Path({str(hub_cache)!r})\n"
        "print(open_artefact('org/tiny', cache_dir=cache).folder.name)\n"
        "try: open_artefact('org/unknown', cache_dir=cache)\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [COMMIT, "ArtefactMissing"]
