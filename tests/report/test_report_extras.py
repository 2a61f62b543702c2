import subprocess
import sys

import pytest

BLOCK = "import sys; sys.modules[{package!r}] = None\n"
PLOT = "from cong.report import *\nplot = LinePlot([Line('a', [0, 1], [0, 1])], Axis('x'), Axis('y'))\n"
PAGE = "page = Page('t', 's', [Section('s', [Figure(plot, 'c')])])\n"


def run(program: str, hash_seed: str = "0") -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PYTHONHASHSEED": hash_seed, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_importing_the_package_imports_no_optional_package() -> None:
    program = "import cong.report, sys; print([n for n in ('matplotlib', 'jinja2', 'torch') if n in sys.modules])"
    assert run(program) == "[]"


@pytest.mark.parametrize(
    ("package", "use"),
    [("matplotlib", "to_svg(plot)"), ("jinja2", "__import__('cong.report.rendering').report.rendering.html(page)")],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(package: str, use: str) -> None:
    program = f"""
{BLOCK.format(package=package)}
{PLOT}{PAGE}
from cong.errors import MissingExtra
try:
    {use}
except MissingExtra as error:
    print(error.extra, error)
"""
    message = run(program)
    assert message.startswith("report ")
    assert repr(package) in message
    assert "-e '.[report]'" in message


def test_tables_need_no_extra() -> None:
    program = BLOCK.format(package="matplotlib") + BLOCK.format(package="jinja2")
    program += "from cong.report import *\nprint(to_html(Table('t', [Column('c')], [[1.0]])).count('1.000'))"
    assert run(program) == "1"


def test_a_page_is_the_same_in_every_process() -> None:
    program = PLOT + PAGE + "import hashlib\nfrom cong.report.rendering import html\n"
    program += "print(hashlib.sha256(html(page).encode()).hexdigest())"
    assert run(program, "1") == run(program, "2")
