"""Every key of every shipped file, misspelt by one letter, is refused with its name and the right one."""

import random
import re
from pathlib import Path

import pytest

from cong.cluster.check import document_problems
from cong.cluster.document import recognise
from cong.config.spelling import num_edits

from .shipped import CHECKED_FILES, ROOT, key_paths, load, renamed

ALPHABET = "qzxjkv"
every_file = pytest.mark.parametrize("path", CHECKED_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())


def misspelt(name: str, generator: random.Random) -> list[str]:
    """The name with one letter dropped, one doubled, two neighbours swapped, and one replaced."""
    at = [number for number, letter in enumerate(name) if letter.isalpha()]
    drop, double, swap, replace = (generator.choice(at) for _ in range(4))
    swapped = name[:swap] + name[swap + 1 : swap + 2] + name[swap] + name[swap + 2 :]
    found = [
        name[:drop] + name[drop + 1 :],
        name[:double] + name[double] + name[double:],
        swapped,
        name[:replace] + generator.choice(ALPHABET) + name[replace + 1 :],
    ]
    return [word for word in found if word and word != name]


def is_refused_by_name(message: str, wrong: str, right: str) -> bool:
    """Whether a message quotes the wrong name and offers the right one, or one that is just as near."""
    ends = {name: re.search(rf"(?<![\w-]){re.escape(name)}'", message) is not None for name in (wrong, right)}
    last = re.findall(r"([\w-]+)'", message)[-1]
    return ends[wrong] and (ends[right] or num_edits(wrong, last) == 1)


@every_file
def test_the_shipped_file_has_nothing_wrong(path: Path) -> None:
    for content in load(path):
        assert document_problems(recognise(content, path.name)) == []


@every_file
def test_every_key_misspelt_by_a_letter_is_refused_with_its_name_and_the_right_one(path: Path) -> None:
    generator = random.Random(0)
    num_tried = 0
    for content in load(path):
        for place in key_paths(content):
            right = str(place[-1])
            for wrong in misspelt(right, generator):
                changed = renamed(content, place, wrong)
                problems = document_problems(recognise(changed, path.name))
                messages = [problem.message for problem in problems]
                assert any(is_refused_by_name(message, wrong, right) for message in messages), (place, wrong, messages)
                num_tried += 1
    assert num_tried > 30
