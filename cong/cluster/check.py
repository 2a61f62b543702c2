"""A whole file: its shape first, then what it must say, then what is still to be filled in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cong.cluster.document import Document, documents, fit_of
from cong.cluster.kubernetes import kubernetes_problems
from cong.cluster.launcher import RULES
from cong.cluster.problem import Problem, joined
from cong.cluster.serving import serve_problems
from cong.config.loading import read_text
from cong.errors import ConfigError

PLACEHOLDER = "CHANGE-ME"
"""Stands in shipped files for what only the user knows."""


def check_file(path: Path, *, may_have_placeholders: bool = False) -> tuple[str, ...]:
    """What the documents of a file are; everything that is wrong in it is one error."""
    text = read_text(path)
    found = list(documents(text, str(path)))
    problems = [problem for document in found for problem in document_problems(document)]
    if not may_have_placeholders:
        problems += [problem for document in found for problem in _placeholders(document.content, "")]
    if problems:
        lines = [f"{path}: {len(problems)} problem(s)", *map(str, problems)]
        raise ConfigError("\n  ".join(lines))
    return tuple(document.name for document in found)


def find_problems(text: str, origin: str) -> list[Problem]:
    """Everything that is wrong in a text, placeholders aside."""
    return [problem for document in documents(text, origin) for problem in document_problems(document)]


def document_problems(document: Document) -> list[Problem]:
    """What is wrong in a document. What it must say is looked at once its keys are right."""
    wrong = list(fit_of(document).problems(document.content))
    if document.format == "kubernetes" and not document.kind and not wrong:
        return [Problem("kind", f"kind is {document.content['kind']!r}, and no such object is known here")]
    return wrong or list(_rules(document))


def _rules(document: Document) -> Iterator[Problem]:
    if document.format == "ray_cluster":
        for rule in RULES:
            yield from rule(document.content)
    elif document.format == "serve_file":
        yield from serve_problems(document.content)
    else:
        yield from kubernetes_problems(document.kind, document.content)


def _placeholders(content: Any, path: str) -> Iterator[Problem]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _placeholders(key, path)
            yield from _placeholders(value, joined(path, key))
    elif isinstance(content, list):
        for number, member in enumerate(content):
            yield from _placeholders(member, joined(path, number))
    elif isinstance(content, str) and PLACEHOLDER in content:
        (line, *_) = [line.strip() for line in content.splitlines() if PLACEHOLDER in line]
        yield Problem(path, f"{path} holds {line!r}: put your own in place of {PLACEHOLDER}")
