"""The page about serving: examples run against a running service, pieces of Serve files are read, tables are whole."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cong.service import METRICS
from serve.__main__ import build_parser
from serve.files import read_serve_file

from ..test_docs import DOCS, blocks_of, commands, section
from ..test_house import ROOT
from .application import Deployed

PAGE = DOCS / "serve.md"


@pytest.mark.ray
def test_the_examples_run(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed.deploy()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONG_URL", deployed.url)
    monkeypatch.setenv("CONG_API_KEY", deployed.key)
    namespace: dict[str, Any] = {"__name__": "example"}
    try:
        for block in blocks_of(PAGE, "python"):
            exec(compile("\n" * (block.line - 1) + block.text, str(PAGE), "exec"), namespace)
    finally:
        for name in ("client", "chat"):
            if name in namespace:
                namespace[name].close()


def test_pieces_of_serve_files_are_taken(tmp_path: Path) -> None:
    pieces = blocks_of(PAGE, "yaml")
    assert pieces
    for piece in pieces:
        content = yaml.safe_load((ROOT / "serve" / "config-lab.yaml").read_text())
        (deployment,) = content["applications"][0]["deployments"]
        del deployment["num_replicas"]
        deployment |= yaml.safe_load(piece.text)
        path = tmp_path / "serve.yaml"
        path.write_text(yaml.safe_dump(content))
        read_serve_file(path)


def test_commands_are_those_of_the_command_line() -> None:
    shown = [words for words in commands(PAGE) if words[:3] == ["python", "-m", "serve"]]
    assert shown
    for words in shown:
        options = build_parser().parse_args(words[3:])
        assert (ROOT / options.config).exists()


def test_the_table_of_metrics_is_whole() -> None:
    rows = re.findall(r"^\| `(cong_\w+)` \| (\w+) \| ([^|]*) \|", section(PAGE, "Metrics"), re.MULTILINE)
    documented = [(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows]
    assert documented == [(metric.name, metric.kind, metric.labels) for metric in METRICS]


def test_settings_that_are_named_exist() -> None:
    from cong.config import RunConfig

    for part, name in re.findall(r"`(service|engine)\.(\w+)`", PAGE.read_text(encoding="utf-8")):
        assert name in type(getattr(RunConfig(), part)).model_fields, f"{part}.{name}"
