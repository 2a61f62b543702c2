"""`cong cluster check` on files: what it says, and how it ends."""

from pathlib import Path

import pytest

from cong.cli import main
from cong.cluster import check_file
from cong.errors import ConfigError

from .shipped import CHECKED_FILES, ROOT

LAB_FILE = ROOT / "serve" / "config-lab.yaml"
"""For a laptop: its replicas ask for no machines of their own."""


def test_the_shipped_files_pass_as_templates(capsys: pytest.CaptureFixture[str]) -> None:
    together = [path for path in CHECKED_FILES if path != LAB_FILE]
    assert main(["cluster", "check", "--template", *map(str, together)]) == 0
    assert main(["cluster", "check", "--template", str(LAB_FILE)]) == 0
    out = capsys.readouterr().out
    assert out.count("nothing wrong found") == len(CHECKED_FILES)
    assert f"{ROOT / 'cluster.yaml'}: a cluster file of `ray up`" in out


def test_what_is_still_to_be_filled_in_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "check", str(ROOT / "cluster.yaml")]) == 2
    err = capsys.readouterr().err
    text = (ROOT / "cluster.yaml").read_text()
    num_lines = sum("CHANGE-ME" in line and not line.startswith("#") for line in text.splitlines())
    assert f"cluster.yaml: {num_lines} problem(s)" in err
    assert "docker.head_image holds 'CHANGE-ME/cong:0.1.0-cpu': put your own in place of CHANGE-ME" in err


def test_a_filled_in_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text((ROOT / "cluster.yaml").read_text().replace("CHANGE-ME", "mine"))
    assert check_file(path) == ("a cluster file of `ray up`",)


def test_every_wrong_file_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(
            (ROOT / "serve" / "config.yaml").read_text().replace("http_options", "htp_options")
        )
    assert (
        main(["cluster", "check", str(tmp_path / "one"), str(ROOT / "serve/config.yaml"), str(tmp_path / "two")]) == 2
    )
    streams = capsys.readouterr()
    assert streams.err.count("unknown key 'htp_options'; the nearest known one is 'http_options'") == 2
    assert "config.yaml" in streams.out


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("- a\n", "holds a list"),
        ("alpha: 1\nbeta: 2\n", "is neither a cluster file of `ray up`, nor a Kubernetes object, nor"),
        ("{}", "its keys are none"),
        ("cluster_name: a\ncluster_name: b\n", "'cluster_name' is given twice"),
        ("a: [1", "is not YAML"),
    ],
)
def test_what_is_no_deployment_file_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        check_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        check_file(tmp_path / "nowhere.yaml")
