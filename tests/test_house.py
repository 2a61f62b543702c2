"""The import rules of the house, over the syntax trees: arrows point one way, lazy imports included."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "cong"

FLOORS: list[set[str]] = [
    {"errors"},
    {"schemas", "wording"},
    {"config", "wire", "files"},
    {"decoding", "objectives", "statistics"},
    {"models", "prompts", "stream", "telemetry", "report", "client", "cluster"},
    {"engine", "train"},
    {"evaluation", "look", "lab", "estimate"},
    {"service", "pipeline"},
    {"cli"},
]
"""From the ground up; a module imports only from floors below its own. Rooms of one floor do not know each other."""

FORBIDDEN = {
    # A room of the library must not know these, wherever its floor is.
    "engine": {"train"},
    "train": {"engine"},
    "decoding": {"schemas", "config"},
    "objectives": {"schemas", "config"},
    "report": {"config"},
    "telemetry": {"config"},
}

OUTSIDE_ALLOWED_IN = {
    # Heavy or special packages and the only places that may import them.
    "ray": ("serve/", "jobs/"),
    "fastapi": ("serve/",),
    "starlette": ("serve/",),
    "uvicorn": ("serve/",),
    "prometheus_client": ("serve/",),
    "deepspeed": ("cong/train/deepspeed_backend.py",),
    "vllm": ("cong/engine/vllm_backend/",),
    "transformers": ("cong/models/", "cong/lab/", "bench/"),
    "peft": ("cong/models/", "cong/train/"),
    "matplotlib": ("cong/report/",),
    "jinja2": ("cong/report/", "cong/models/"),
    "argparse": ("cong/cli/", "serve/", "jobs/", "bench/"),
}

FORBIDDEN_OUTSIDE = {
    # Outside packages that a part of the tree must not import itself.
    "cong/service/": {"torch"},
    "serve/http/": {"ray"},
}

PURE = {
    # Rooms that may import only these packages from outside, the standard library aside.
    "errors": set[str](),
    "wording": set[str](),
    "schemas": {"pydantic"},
    "config": {"pydantic", "yaml"},
    "decoding": {"torch"},
    "objectives": {"torch"},
    "stream": {"numpy", "pyarrow", "fsspec"},
}


def sources() -> list[Path]:
    """Every Python file of the product, tests left out."""
    return [path for top in ("cong", "serve", "jobs") for path in sorted((ROOT / top).rglob("*.py"))]


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a file imports anywhere, in functions too, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            module = node.module or ""
            yield module, node.lineno
            if module == "cong":
                yield from ((f"cong.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"__import__", "importlib.import_module"}:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value, node.lineno


def room_of(path: Path) -> str:
    """The part of the library that a file belongs to; empty outside the library and for its front door."""
    inside = path.relative_to(LIBRARY).parts if path.is_relative_to(LIBRARY) else ("",)
    room = inside[0].removesuffix(".py")
    return "" if room == "__init__" else room


def floor_of(room: str) -> int:
    (floor,) = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return floor


def violations(path: Path, room: str) -> Iterator[str]:
    """What a file of a room imports against the rules."""
    where = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    for name, line in imported(path):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top == "cong" and room and target and target != room and target != "__version__":
            if floor_of(target) >= floor_of(room):
                yield f"{where}:{line}: {room} (floor {floor_of(room)}) imports {target} (floor {floor_of(target)})"
            elif target in FORBIDDEN.get(room, set()):
                yield f"{where}:{line}: {room} must not know {target}"
        if top in {"serve", "jobs"} and room:
            yield f"{where}:{line}: the library imports an edge, {name}"
        allowed = OUTSIDE_ALLOWED_IN.get(top)
        if allowed is not None and not where.startswith(allowed):
            yield f"{where}:{line}: {top} may be imported only in {', '.join(allowed)}"
        for part, packages in FORBIDDEN_OUTSIDE.items():
            if top in packages and (where.startswith(part) or f"cong/{room}/" == part):
                yield f"{where}:{line}: {part} must not import {top}"
        if room in PURE and top not in PURE[room] | {"cong"} and top not in sys.stdlib_module_names | {"_typeshed"}:
            yield f"{where}:{line}: {room} may import only {', '.join(PURE[room]) or 'the standard library'}, not {top}"


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in LIBRARY.rglob("*.py")} - {""}
    assert rooms <= set().union(*FLOORS)


def test_arrows_point_one_way() -> None:
    found = [violation for path in sources() for violation in violations(path, room_of(path))]
    assert not found, "\n".join(found)


def arrows() -> dict[str, set[str]]:
    """Each module of the product, and those of its modules that it imports."""
    names = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in sources()
    }
    modules = set(names.values())
    found: dict[str, set[str]] = {}
    for path, name in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = [
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        targets = {*parts, *(target for target, _ in imported(path))}
        # What `from package import module` takes is the module, not the package's face.
        faces = {part.rpartition(".")[0] for part in parts if part in modules}
        found[name] = (targets - faces) & modules - {name}
    return found


def test_no_two_modules_import_each_other_on_any_way_around() -> None:
    left = arrows()
    # A module that imports nothing of what is left stands on no circle; nor does what only such modules hold up.
    while free := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in free}
    assert not left, "\n".join(
        f"{name} -> {', '.join(sorted(targets & left.keys()))}" for name, targets in left.items()
    )


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("errors", "import torch"),
        ("config", "def f() -> None:\n    import torch"),
        ("decoding", "from cong.schemas import Prompt"),
        ("decoding", "from cong import schemas"),
        ("engine", "import importlib\nimportlib.import_module('cong.train')"),
        ("models", "from cong.stream import reader"),
        ("stream", "def f() -> None:\n    import torch"),
        ("stream", "import datasets"),
        ("stream", "from cong.models import Tokenizer"),
        ("lab", "from cong.evaluation import judge"),
        ("train", "import ray"),
        ("engine", "import transformers"),
        ("service", "import jobs.train"),
        ("service", "import torch"),
        ("service", "from fastapi import FastAPI"),
    ],
)
def test_the_rules_notice_a_breach(tmp_path: Path, room: str, source: str) -> None:
    path = tmp_path / "breach.py"
    path.write_text(source)
    assert list(violations(path, room))


def loaded_packages(statement: str) -> set[str]:
    """Top-level packages in memory after a statement in a fresh interpreter."""
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_the_vocabulary_loads_no_torch() -> None:
    assert not loaded_packages("import cong.config, cong.schemas, cong.errors") & {"torch", "numpy", "transformers"}


def test_help_and_mistakes_on_the_command_line_wait_for_no_torch() -> None:
    heavy = {"torch", "transformers", "datasets"}
    assert not loaded_packages("from cong.cli import build_parser; build_parser()") & heavy


def test_nothing_is_read_before_the_command_line_can_be_interrupted() -> None:
    assert not loaded_packages("import cong.cli") & {"pydantic", "yaml", "pyarrow", "numpy", "rich"}


def test_a_stream_is_read_and_written_without_torch() -> None:
    heavy = {"torch", "transformers", "datasets", "s3fs", "boto3", "matplotlib", "rich"}
    assert not loaded_packages("import cong.stream, cong.stream.export, cong.stream.statistics") & heavy


def test_whoever_only_watches_others_train_loads_no_torch() -> None:
    assert not loaded_packages("import jobs.train, jobs.entry, jobs.board") & {"torch", "transformers", "datasets"}


@pytest.mark.parametrize("room", ["decoding", "objectives"])
def test_the_maths_loads_nothing_but_torch(room: str) -> None:
    assert loaded_packages(f"import cong.{room}") - loaded_packages("import torch") <= {"cong"}
