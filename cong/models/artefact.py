"""Where an artefact lies and whether it is safe to open: folders and hub ids become folders of plain data.

Reads file names and JSON only, and knows neither torch nor transformers, so every refusal here comes before any code
that the artefact could influence. What it lets through is safetensors, JSON, Jinja templates (run in a sandbox) and
vocabulary files.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from cong.errors import ArtefactMissing, ConfigError, UnsafeArtefact

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_|]+")
_TOKENIZER_CLASS = re.compile(r"\w*(Tokenizer|TokenizerFast|Backend)")
_CONFIG_PATTERNS = ["*.json", "*.jinja", "*.txt", "*.model"]
_WEIGHT_PATTERNS = ["*.safetensors"]

_CODE_KEYS = ("auto_map", "custom_pipelines", "kernel_config", "use_kernels", "fusion_config", "transformers_weights")
"""Keys of a configuration that make transformers import, patch or read something else than the folder's own data."""
_IMPLEMENTATION_KEYS = tuple(
    f"{prefix}{name}_implementation{suffix}"
    for name in ("attn", "experts")
    for prefix in ("", "_")
    for suffix in ("", "_internal")
)
"""Keys whose value may name a kernel repository (`owner/name`) to download and import."""


@dataclass(frozen=True)
class Artefact:
    """A folder that holds plain data only."""

    folder: Path
    name: str
    """For people: the hub id or the folder's name. Never part of a fingerprint."""
    commit: str | None = None
    """The hub's commit that was opened; None = a folder."""


def open_artefact(
    source: str,
    *,
    revision: str | None = None,
    root: Path | None = None,
    cache_dir: Path | None = None,
    with_weights: bool = True,
) -> Artefact:
    """Find a folder or hub id and refuse it unless everything in it is plain data.

    With a `root` only folders below it are opened. A hub id is downloaded in two steps, so that weights are fetched
    only if they are wanted and the artefact has been found safe.
    """
    if root is not None:
        artefact = Artefact(_below_root(source, root), Path(source).name)
    else:
        path = Path(source).expanduser()
        if not path.exists() and _HUB_ID.fullmatch(source):
            return _from_hub(source, revision, cache_dir, with_weights)
        artefact = Artefact(path, path.resolve().name)
    if not artefact.folder.exists():
        raise ArtefactMissing(f"{source!r} does not exist; give a folder in Hugging Face format or a hub id")
    if not artefact.folder.is_dir():
        raise ArtefactMissing(f"{source!r} is a file; give the folder that holds it")
    if revision is not None:
        raise ConfigError(f"revision {revision!r} is for hub ids, and {source!r} is a folder; leave it out")
    refuse_code(artefact.folder)
    return artefact


def _below_root(source: str, root: Path) -> Path:
    if ".." in Path(source).parts:
        raise UnsafeArtefact(f"{source!r} contains '..'; name the folder by its plain path below {root}")
    resolved_root = root.resolve()
    folder = (resolved_root / source).resolve()
    if not folder.is_relative_to(resolved_root):
        raise UnsafeArtefact(f"{source!r} leads to {folder}, outside the allowed root {root}; move it below the root")
    if not folder.exists():
        raise ArtefactMissing(f"{source!r} does not exist below {root}; hub ids are not looked up where a root is set")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.resolve().is_relative_to(resolved_root):
            raise UnsafeArtefact(f"{path} leads to {path.resolve()}, outside the allowed root {root}; copy the file in")
    return folder


def _from_hub(repo_id: str, revision: str | None, cache_dir: Path | None, with_weights: bool) -> Artefact:
    folder = _download(repo_id, revision, cache_dir, _CONFIG_PATTERNS)
    refuse_code(folder)
    if with_weights and not _has_weights(folder):
        # The snapshot's folder is named by its commit, which pins this step to what the first one checked.
        folder = _download(repo_id, folder.name, cache_dir, [*_CONFIG_PATTERNS, *_WEIGHT_PATTERNS])
        refuse_code(folder)
    return Artefact(folder, repo_id, commit=folder.name)


def _has_weights(folder: Path) -> bool:
    """Whether an earlier download has left nothing to fetch."""
    for stem in ("model", "adapter_model"):
        try:
            return bool(weight_files(folder, stem))
        except ArtefactMissing:
            continue
    return False


def _download(repo_id: str, revision: str | None, cache_dir: Path | None, patterns: list[str]) -> Path:
    wanted = repo_id if revision is None else f"{repo_id} at revision {revision}"
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=patterns,
            ignore_patterns=["*/*"],
            # Said again here: for a pinned commit some versions of the client ask the hub all the same.
            local_files_only=huggingface_hub.is_offline_mode(),
        )
    except HFValidationError as error:
        raise ArtefactMissing(f"{repo_id!r} is neither a folder nor a hub id ({error}); check the path") from error
    except Exception as error:  # versions of the client differ in whose connection errors they let through
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ArtefactMissing(
            f"no folder {repo_id!r} exists, and the hub gave no {wanted} ({reason}); give a folder, or, with a "
            f"connection and HF_HUB_OFFLINE unset, fetch it first: hf download {repo_id}"
        ) from error
    return Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping that a JSON file holds; a missing file is an empty mapping."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactMissing(f"{path} is not readable JSON ({error}); fetch or save it again") from error
    if not isinstance(content, dict):
        raise ArtefactMissing(f"{path} holds a JSON {type(content).__name__}, not an object; fetch or save it again")
    return content


def refuse_code(folder: Path) -> None:
    """Refuse a folder whose configuration files or subfolders would bring code along."""
    if (folder / "custom_generate").exists():
        raise UnsafeArtefact(f"{folder} brings its own generation code (custom_generate/); remove that folder")
    for path in sorted(folder.glob("*config.json")):
        _refuse_keys(path, read_json(path))
    tokenizer_class = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    if tokenizer_class is not None and not _TOKENIZER_CLASS.fullmatch(str(tokenizer_class)):
        raise UnsafeArtefact(
            f"{folder / 'tokenizer_config.json'} sets tokenizer_class to {tokenizer_class!r}, which is no tokenizer "
            "of transformers; correct it or remove the key"
        )
    _refuse_foreign_library(folder / "adapter_config.json")


def _refuse_keys(path: Path, value: Any) -> None:
    if isinstance(value, list):
        for entry in value:
            _refuse_keys(path, entry)
    if not isinstance(value, dict):
        return
    for key, entry in value.items():
        if key in _CODE_KEYS and entry:
            raise UnsafeArtefact(
                f"{path} sets {key} to {entry!r}: loading would run code or read files that it names; where the "
                "architecture is part of transformers, remove the key, otherwise it cannot be used"
            )
        if key in _IMPLEMENTATION_KEYS and not all(_PLAIN_WORD.fullmatch(str(word)) for word in _leaves(entry)):
            raise UnsafeArtefact(
                f"{path} sets {key} to {entry!r}: loading would download and import a kernel; remove the key"
            )
        _refuse_keys(path, entry)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in _leaves(entry)]
    return [value]


def _refuse_foreign_library(path: Path) -> None:
    # PEFT writes the module of the base model's class here, and may import what it reads.
    mapping = read_json(path).get("auto_mapping") or {}
    library = str(mapping.get("parent_library") or "transformers")
    if library.split(".")[0] != "transformers":
        raise UnsafeArtefact(f"{path} names the library {library!r} to import; set auto_mapping to null")


def weight_files(folder: Path, stem: str = "model") -> tuple[Path, ...]:
    """The safetensors files of a folder, in the order of their names; anything else is refused."""
    single = folder / f"{stem}.safetensors"
    index = folder / f"{stem}.safetensors.index.json"
    if any(folder.glob("shard-*-model-*.safetensors")):
        raise ArtefactMissing(f"{folder} holds a distributed checkpoint; gather it into {single.name} first")
    if single.exists():
        return (single,)
    if not index.exists():
        _raise_without_weights(folder, stem)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ArtefactMissing(f"{index} has no weight_map; fetch or save it again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UnsafeArtefact(f"{index} names {name!r}; shards are safetensors files beside the index")
        if not (folder / name).exists():
            raise ArtefactMissing(f"{index} names {name}, which is not in {folder}; fetch the folder again, whole")
    return tuple(folder / name for name in names)


def _raise_without_weights(folder: Path, stem: str) -> NoReturn:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise UnsafeArtefact(
            f"{folder} holds weights only as pickle ({', '.join(pickles[:3])}), and unpickling runs code; convert them "
            "to safetensors where the source is trusted (save_pretrained writes them), and load that folder"
        )
    raise ArtefactMissing(
        f"{folder} holds neither {stem}.safetensors nor {stem}.safetensors.index.json; fetch the folder again, whole"
    )
