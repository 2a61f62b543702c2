"""The security page: advisories that are told are mended by the versions that are pinned; what is closed is closed."""

import re

import pytest
import yaml

from .test_docs import DOCS, section
from .test_house import ROOT

PAGE = DOCS / "security.md"

FIXED_IN = {
    "CVE-2023-48022": ("ray", (2, 52)),
    "CVE-2025-62593": ("ray", (2, 52)),
    "CVE-2026-27482": ("ray", (2, 54)),
    "CVE-2026-4372": ("transformers", (5, 3, 0)),
    "CVE-2026-1839": ("transformers", (5, 0, 0)),
}


def pinned(package: str) -> tuple[int, ...]:
    """The version that every install has."""
    (version,) = re.findall(
        rf"^{package}(?:\[[^\]]*\])?==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    return tuple(map(int, version.split(".")))


def test_every_advisory_is_on_the_page_with_the_version_that_mends_it() -> None:
    rows = re.findall(
        r"^\| (CVE-[\d-]+)[^|]*\|[^|]+\| ([^|]+) \|", section(PAGE, "Ray runs whatever it is sent"), re.MULTILINE
    )
    told = {name: tuple(map(int, re.findall(r"\d+", re.findall(r"[\d.]+\d", where)[-1]))) for name, where in rows}
    assert told == {name: version for name, (_, version) in FIXED_IN.items()}


@pytest.mark.parametrize("advisory", FIXED_IN)
def test_what_is_installed_is_above_it(advisory: str) -> None:
    package, version = FIXED_IN[advisory]
    assert pinned(package) >= version


def test_the_policy_opens_to_everyone_what_the_page_says_and_no_more() -> None:
    (policy,) = yaml.safe_load_all((ROOT / "deploy" / "kuberay" / "network-policy.yaml").read_text())
    opened = [rule["ports"] for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert [[port["port"] for port in ports] for ports in opened] == [[8000]]
    closed = set(map(int, re.findall(r"\b(\d{4,5})\s+\(", section(PAGE, "Ray runs whatever it is sent"))))
    assert closed == {6379, 8265, 10001, 8076, 52365, 8080}
