"""Made things under a key of everything they were made from, so that none is reused after its recipe changed.

An entry is a folder with `recipe.json`: what it was made from, and a checksum of every file. It appears by a rename,
is verified on every use, and is made again, with a warning, where it does not verify. Knows nothing of what is made.
"""

import ast
import hashlib
import importlib.util
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cong.files import make_folder
from cong.schemas import SCHEMA_VERSION, content_key

RECIPE_FILE = "recipe.json"

_log = logging.getLogger(__name__)


def _shape(node: object) -> object:
    """A syntax tree as plain data, without positions, docstrings and fields that are empty.

    Empty fields differ between Python versions; comments, docstrings and layout change nothing that is made.
    """
    if isinstance(node, ast.AST):
        fields = {name: _shape(value) for name, value in ast.iter_fields(node) if name not in ("kind", "type_comment")}
        return [type(node).__name__, {name: value for name, value in fields.items() if value not in (None, [])}]
    if isinstance(node, list):
        return [_shape(each) for each in node if not _is_docstring(each)]
    return node if node is None else repr(node)


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def source_digest(sources: Iterable[str]) -> str:
    """Digest of what Python sources say; comments, docstrings and layout do not count."""
    return content_key([_shape(ast.parse(source)) for source in sources])


def digest_of_modules(names: Iterable[str]) -> str:
    """Digest of the sources of modules, given by their dotted names."""
    specs = [importlib.util.find_spec(name) for name in sorted(names)]
    return source_digest(Path(spec.origin or "").read_text(encoding="utf-8") for spec in specs if spec is not None)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a made thing is."""

    kind: str
    settings: Mapping[str, Any]
    source: str
    """Digest of the code that makes it."""

    @property
    def key(self) -> str:
        """The same on every machine."""
        return content_key([self.kind, self.settings, self.source, SCHEMA_VERSION])

    @property
    def local_key(self) -> str:
        """Rounding differs between versions of torch and between processors, so what is cached is local to both."""
        return content_key([self.key, torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability()])


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECIPE_FILE)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def seal(folder: Path, recipe: Recipe) -> None:
    """Write down what a folder was made from and what its files are."""
    content = {
        "key": recipe.key,
        "kind": recipe.kind,
        "settings": recipe.settings,
        "source": recipe.source,
        "software": {"torch": torch.__version__, "python": platform.python_version()},
        "checksums": _checksums(folder),
    }
    (folder / RECIPE_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def problem_with(folder: Path, recipe: Recipe) -> str | None:
    """Why a folder does not hold what the recipe makes, or None."""
    try:
        content = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
        key, checksums = content["key"], content["checksums"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{RECIPE_FILE} cannot be read ({error})"
    if key != recipe.key:
        return f"it was made by another recipe ({key[:12]}, now {recipe.key[:12]})"
    found = _checksums(folder)
    wrong = sorted(name for name in checksums.keys() | found.keys() if checksums.get(name) != found.get(name))
    return f"{', '.join(wrong)} changed since it was made" if wrong else None


class Cache:
    """Entries below one folder; safe for several processes, of which the first to finish an entry wins."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder_of(self, recipe: Recipe) -> Path:
        """Where the recipe's entry lies, made or not."""
        return self._root / f"{recipe.kind}-{recipe.local_key[:16]}"

    def has(self, recipe: Recipe) -> bool:
        """Whether a sound entry is there."""
        folder = self.folder_of(recipe)
        return folder.exists() and problem_with(folder, recipe) is None

    def get(self, recipe: Recipe, make: Callable[[Path], None]) -> Path:
        """The folder of the recipe's entry; `make` fills an empty one where there is none."""
        folder = self.folder_of(recipe)
        if folder.exists():
            problem = problem_with(folder, recipe)
            if problem is None:
                return folder
            _log.warning("cache entry %s is damaged: %s; it is made again", folder.name, problem)
        make_folder(self._root)
        made = Path(tempfile.mkdtemp(prefix=f".{recipe.kind}-", dir=self._root))
        try:
            make(made)
            seal(made, recipe)
            self._publish(made, folder, recipe)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return folder

    def _publish(self, made: Path, folder: Path, recipe: Recipe) -> None:
        if folder.exists() and problem_with(folder, recipe) is not None:
            damaged = Path(tempfile.mkdtemp(prefix=".damaged-", dir=self._root))
            os.replace(folder, damaged)
            shutil.rmtree(damaged)
        try:
            os.replace(made, folder)
        except OSError:
            # Another process was first; a folder that is not empty is never replaced.
            if problem_with(folder, recipe) is not None:
                raise
