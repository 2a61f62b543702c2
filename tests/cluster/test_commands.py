"""Shell lines of cluster files are read as a shell would."""

import pytest

from cong.cluster.commands import docker_variables, flags_of, published_ports, variables_of


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("ray start --head --port=6379", {"--head": "", "--port": "6379"}),
        ("ulimit -n 65536; ray start --head", {"--head": ""}),
        ("ulimit -n 65536;ray start --address $RAY_HEAD_IP:6379", {"--address": "$RAY_HEAD_IP:6379"}),
        ("RAY_AUTH_MODE=token ray start --block --port 1", {"--block": "", "--port": "1"}),
        ("export A=1 && ray start '--labels=a b'", {"--labels": "a b"}),
        ("ray stop", None),
        ("echo 'ray start --head'", None),
        ("ray start --unbalanced='", None),
    ],
)
def test_flags_belong_to_the_program_that_gets_them(line: str, flags: dict[str, str] | None) -> None:
    assert flags_of(line, "ray", "start") == flags


@pytest.mark.parametrize(
    ("line", "variables"),
    [
        ("export A=1 B=two; ray start", {"A": "1", "B": "two"}),
        ("A=1 ray start --resources B=2", {"A": "1"}),
        ("echo A=1", {}),
    ],
)
def test_variables_are_those_that_a_line_sets(line: str, variables: dict[str, str]) -> None:
    assert variables_of(line) == variables


def test_docker_options_are_read_in_every_spelling() -> None:
    options = ["-e A=1", "--env=B=2", "--env C=3", "-v /e:/e", "-p 1:1", "--publish=127.0.0.1:2:2", "-e PASSED_ON"]
    assert docker_variables(options) == {"A": "1", "B": "2", "C": "3"}
    assert sorted(published_ports(options)) == ["127.0.0.1:2:2", "1:1"]
