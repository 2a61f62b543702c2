"""What the documentation promises: commands parse, links lead somewhere, maps show the whole tree."""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cong.cli import build_parser
from cong.config import RunConfig, load_config
from cong.decoding import METHODS, parametrise
from cong.lab.chain.files import MODEL_FOLDERS
from cong.lab.decodings import BASE
from cong.lab.names import WEAK_ALIGNED
from cong.lab.networks import build_network, save_network
from cong.objectives import OBJECTIVES

from .test_house import FLOORS, LIBRARY, ROOT, room_of

DOCS = ROOT / "docs"
README = ROOT / "README.md"
SHOWN = [README, *sorted(DOCS.rglob("*.md"))]
PAGES = [*SHOWN, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))]
ROOMS = {room_of(path) for path in LIBRARY.rglob("*.py")} - {""}
OPTIONAL_FOLDERS = ("serve", "jobs", "bench", "deploy")

NEED_A_SERVICE = {DOCS / "serve.md"}
"""Pages whose examples are run, and whose pieces of Serve files are read, by the tests of what they are about."""

FENCE = re.compile(r"^ *(`{3,}) *(\w*)")
NOT_RUN = re.compile(r"# not run: \S")

every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    line: int
    """Of its first line, counted from 1."""
    text: str


def split(path: Path) -> tuple[list[Block], str]:
    """The fenced blocks of a page, and the page without them."""
    blocks: list[Block] = []
    prose: list[str] = []
    fence, language, start, inside = "", "", 0, list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = FENCE.match(line)
        if not fence and match:
            fence, language, start, inside = match[1], match[2], number + 1, []
        elif fence and line.strip() == fence:
            blocks.append(Block(language, start, "\n".join(inside) + "\n"))
            fence = ""
        elif fence:
            inside.append(line)
        else:
            prose.append(line)
    assert not fence, f"{path}:{start}: the block does not end"
    return blocks, "\n".join(prose)


def blocks_of(path: Path, *languages: str) -> list[Block]:
    return [block for block in split(path)[0] if block.language in languages]


def section(path: Path, title: str) -> str:
    """What stands between a heading and the next one of its level or above."""
    _, _, rest = path.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    assert rest, f"{path} has no section {title!r}"
    return rest.partition("\n## ")[0]


def tree_lines(path: Path, title: str) -> list[str]:
    """Lines of the first text block of a section."""
    return section(path, title).partition("```text\n")[2].partition("```")[0].splitlines()


# Examples.


def leave_what_the_demo_leaves(folder: Path) -> None:
    """The weak pair where `cong lab demo` puts it, with random weights."""
    for seed, name in enumerate((WEAK_ALIGNED, BASE)):
        network = build_network(16, 1, 2, 24, torch.Generator().manual_seed(seed))
        save_network(network, folder / RunConfig().output_dir / "models" / MODEL_FOLDERS[name])


# Commands.


def command_lines(block: Block) -> Iterator[str]:
    """Commands of a shell block, continued lines joined and here-documents left out."""
    lines = iter(block.text.replace("\\\n", " ").splitlines())
    for line in lines:
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        yield line
        here = re.search(r"<<-?\s*['\"]?(\w+)", line)
        while here and next(lines).strip() != here[1]:
            pass


def commands(path: Path) -> Iterator[list[str]]:
    """The words of every command that a page shows, those that are marked as not run left out."""
    for block in blocks_of(path, "console", "bash", "sh"):
        for line in command_lines(block):
            if NOT_RUN.search(line):
                continue
            for part in re.split(r"\s(?:&&|\|\||\||;)\s", line):
                words = shlex.split(part, comments=True)
                while words and re.match(r"\w+=", words[0]):
                    words = words[1:]
                if words:
                    yield words


def parse(words: list[str], parser: argparse.ArgumentParser) -> None:
    """Refuse what the command line refuses, and files of the tree that are not there."""
    try:
        parser.parse_args(words[1:])
    except SystemExit as error:
        if error.code != 0:
            pytest.fail(f"the command line refuses: {shlex.join(words)}")
    missing = [word for word in words if word.startswith("configs/") and not (ROOT / word).exists()]
    assert not missing, f"{shlex.join(words)}: no such file: {missing}"


@every_page
def test_commands_are_those_of_the_command_line(path: Path) -> None:
    parser = build_parser()
    for words in commands(path):
        if Path(words[0]).name == "cong":
            parse(words, parser)


@every_page
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = [words[1:] for words in commands(path) if words[0] == "make"]
    shown += [words.split() for words in re.findall(r"`make ([a-z -]+)`", split(path)[1])]
    assert {word for words in shown for word in words} <= targets


@pytest.mark.parametrize("line", ["cong lab demo --nosuch", "cong nosuch", "cong config check configs/nosuch.yaml"])
def test_a_wrong_command_is_noticed(tmp_path: Path, line: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```console\n$ {line}\nsome output\n$ {line}  # not run: an example\n```\n")
    (words,) = commands(page)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        parse(words, build_parser())


@pytest.mark.parametrize(
    "path", [path for path in SHOWN if path not in NEED_A_SERVICE], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_configurations_that_are_shown_load(path: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks_of(path, "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block.text)
        load_config(RunConfig, [file])


# Links and names.


def anchors(path: Path) -> set[str]:
    """What headings of a page are called in links."""
    titles = re.findall(r"^#+ (.+)$", split(path)[1], re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower() for title in titles]
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


def broken_links(path: Path) -> list[str]:
    prose = re.sub(r"`[^`\n]*`", "", split(path)[1])
    broken = []
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name.replace("%20", " ") if name else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


@every_page
def test_relative_links_resolve(path: Path) -> None:
    assert not broken_links(path)


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Its title\n[a](page.md#its-title) [b](#no-title) [c](none.md) `[d](none.md)` [e](https://a.b)\n")
    assert broken_links(page) == ["#no-title", "none.md"]


def named_tests() -> dict[str, set[str]]:
    """Test files by name, and the tests that each holds."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        # Rooms have files of the same name.
        found.setdefault(path.stem, set()).update(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    return found


@every_page
def test_files_and_tests_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    names = named_tests()
    known = names.keys() | set().union(*names.values())
    assert set(re.findall(r"\btest_\w+", text)) <= known
    files = re.findall(r"\b(?:tests|cong|docs|configs)/[\w/]+\.(?:py|md|yaml)\b", text)
    assert not [name for name in files if not (ROOT / name).exists()]
    for stem, quoted, word in re.findall(r"/(test_\w+)\.py -k (?:\"([^\"`]+)\"|(\w+))", text):
        for part in (quoted or word).split(" or "):
            assert any(part in name for name in names[stem]), f"{stem} has no test with {part!r} in its name"


# Maps.


def test_the_readme_s_tree_names_every_room_and_nothing_else() -> None:
    lines = tree_lines(README, "The tree")
    inside = {line.split()[0].strip("/").removesuffix(".py") for line in lines if line.startswith("  ")}
    assert inside == ROOMS
    top = [line.split()[0].strip("/") for line in lines if not line.startswith(" ")]
    assert not [name for name in top if not (ROOT / name).exists()]
    assert {name for name in OPTIONAL_FOLDERS if any((ROOT / name).rglob("*.py"))} <= set(top)
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines), "every line says what it is"


def test_the_drawn_floors_are_the_enforced_ones() -> None:
    drawn = [set(re.split(r"\s{3,}", line)[0].split()) for line in tree_lines(DOCS / "structure.md", "Floors")]
    enforced = [floor & ROOMS for floor in reversed(FLOORS) if floor & ROOMS]
    assert drawn == enforced


def test_the_map_of_modules_is_complete() -> None:
    rows = re.findall(r"^\| `([\w/]+\.py)` \| \S", (DOCS / "structure.md").read_text(encoding="utf-8"), re.MULTILINE)
    modules = [path.relative_to(LIBRARY).as_posix() for path in LIBRARY.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(rows) == sorted(modules)


def test_every_decoding_method_is_documented_with_its_defaults() -> None:
    cells = re.findall(r"^\| `(\"[^`]+)` \|", (DOCS / "method.md").read_text(encoding="utf-8"), re.MULTILINE)
    documented = {}
    for cell in cells:
        call = ast.parse(f"f({cell})", mode="eval").body
        assert isinstance(call, ast.Call)
        name = ast.literal_eval(call.args[0])
        documented[name] = parametrise(name, **{str(key.arg): ast.literal_eval(key.value) for key in call.keywords})
    assert documented == {name: method() for name, method in METHODS.items()}


def test_every_objective_is_documented() -> None:
    text = section(DOCS / "method.md", "Two training stages")
    assert not [name for name in OBJECTIVES if f"`{name}`" not in text and f'objective("{name}"' not in text]


def test_every_section_of_a_run_s_configuration_is_documented() -> None:
    text = section(DOCS / "configuration.md", "Sections")
    assert not [name for name in RunConfig.model_fields if f"`{name}`" not in text]


def nav_pages(entry: Any) -> list[str]:
    """Pages of a navigation, depth first."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in nav_pages(part)]


def test_the_navigation_names_every_page_once() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(nav_pages(settings["nav"])) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")
    )
