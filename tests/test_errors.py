"""The tree of errors has one root, and its drawing shows every branch."""

import ast
import inspect
import re

import cong.errors
from cong.errors import CongError
from serve.http.errors import kind_of

from .test_docs import DOCS
from .test_house import sources

PAGE = DOCS / "errors.md"


def test_every_error_hangs_in_the_tree_and_in_its_drawing() -> None:
    classes = [value for _, value in inspect.getmembers(cong.errors, inspect.isclass)]
    assert all(issubclass(error, CongError) for error in classes)
    drawing = inspect.getdoc(cong.errors) or ""
    assert all(error.__name__ in drawing for error in classes)


def test_errors_that_carry_facts_keep_them() -> None:
    assert cong.errors.InvalidRequest("top_p", "is 0").field == "top_p"
    assert cong.errors.Overloaded("full", retry_after_s=1.5).retry_after_s == 1.5
    assert "pip install -c constraints.txt -e '.[lora]'" in str(cong.errors.MissingExtra("lora", "peft"))


def test_the_page_of_errors_gives_each_its_cause_its_remedy_and_its_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| (\d+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    classes: dict[str, type[CongError]] = dict(inspect.getmembers(cong.errors, inspect.isclass))
    assert sorted(name for name, *_ in rows) == sorted(classes.keys() - {"CongError"}), "each error has one row"
    for name, cause, remedy, status in rows:
        kind = kind_of(classes[name])
        assert kind is not None
        assert kind.status == int(status), name
        assert len(cause.strip()) > 20, name
        assert len(remedy.strip()) > 20, name


def messages() -> str:
    """Every text in the sources, formatted parts as one mark."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_that_the_page_quotes_are_said() -> None:
    text = messages()
    _, _, questions = PAGE.read_text(encoding="utf-8").partition("## Questions")
    quoted = re.findall(r"^\*\*[^`*]*`([^`]+ [^`]+)`", questions, re.MULTILINE)
    assert len(quoted) >= 4
    for quote in quoted:
        # What stands between quotes in a message is the user's.
        shape = r".*".join(map(re.escape, re.split(r"'[^']*'", quote)))
        assert re.search(shape, text), quote
