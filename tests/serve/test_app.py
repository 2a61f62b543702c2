"""Arguments and Serve files: what is given is what runs, and what is wrong is refused by name before it starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cong.config.serving import LightSettings
from cong.errors import ConfigError
from serve.app import DEPLOYMENT, Application, actor_options, build, shutdown_s
from serve.files import read_serve_file

SERVE = Path(__file__).parent.parent.parent / "serve"
SHIPPED = [SERVE / "config.yaml", SERVE / "config-lab.yaml", SERVE / "config-vllm.yaml"]

every_file = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)


def test_arguments_go_over_the_file_that_they_name(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("models: {aligned: {source: a}, base: {source: b}, dtype: float32}\nengine: {max_running: 7}\n")
    args = Application.model_validate({"config": str(path), "models": {"base": {"source": "c"}}})
    config = args.run()
    assert (config.models.aligned.source, config.models.base.source, config.models.dtype) == ("a", "c", "float32")
    assert config.engine.max_running == 7


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"modles": {}}, "unknown key 'modles'; the nearest known one is 'models'"),
        ({"service": {"max_deadlines_s": 3}}, "the nearest known one is 'service.max_deadline_s'"),
        ({"resources": {"num_gpu": 1}}, "the nearest known one is 'resources.num_gpus'"),
        ({"engine": {"max_running": 0}}, "engine.max_running is 0"),
        ({"config": "no/such.yaml"}, "cannot read no/such.yaml"),
        ({"service": {"host": "0.0.0.0"}}, "there are no keys"),
    ],
)
def test_wrong_arguments_are_refused_by_name(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Application.model_validate(args)


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ({}, {"num_cpus": 1.0, "num_gpus": 0.0}),
        ({"models": {"device": "cuda"}}, {"num_cpus": 1.0, "num_gpus": 1.0}),
        ({"models": {"device": "cuda:0"}, "resources": {"num_gpus": 0.5}}, {"num_cpus": 1.0, "num_gpus": 0.5}),
        (
            {"resources": {"memory_bytes": 10, "custom": {"fast": 1}}},
            {"num_cpus": 1.0, "num_gpus": 0.0, "memory": 10, "resources": {"fast": 1.0}},
        ),
    ],
)
def test_a_replica_takes_what_its_networks_need(args: dict[str, Any], wanted: dict[str, Any]) -> None:
    given = Application.model_validate(args)
    assert actor_options(given.resources, given.run()) == wanted


def test_a_replica_may_take_as_long_to_stop_as_its_longest_request() -> None:
    args = Application.model_validate({"service": {"max_deadline_s": 700, "default_deadline_s": 5}})
    deployment = build(args)._bound_deployment
    assert deployment._deployment_config.graceful_shutdown_timeout_s == shutdown_s(args.service) > 700 + 30


@every_file
def test_shipped_files_are_in_order(path: Path) -> None:
    file = read_serve_file(path)
    assert file.schema.http_options.host == "127.0.0.1"
    assert file.schema.http_options.keep_alive_timeout_s > 0
    (deployment,) = file.schema.applications[0].deployments
    assert deployment.name == DEPLOYMENT
    assert deployment.graceful_shutdown_timeout_s == shutdown_s(file.args.service)
    # A stuck engine is told within 15 s: at the first check after it counts as stuck.
    period_s = deployment.model_dump(exclude_unset=True).get("health_check_period_s", 2.0)
    assert file.args.service.stuck_after_s + period_s <= 15.0
    options = file.schema.controller_options
    assert options is not None
    assert options.runtime_env is not None
    assert options.runtime_env["env_vars"]["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] == "1"


def keys_of(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all keys, those below free-form mappings of Ray left out."""
    found: list[tuple[Any, ...]] = []
    if isinstance(content, dict):
        for key, value in content.items():
            found.append((*path, key))
            if key != "env_vars":
                found += keys_of(value, (*path, key))
    elif isinstance(content, list):
        for number, item in enumerate(content):
            found += keys_of(item, (*path, number))
    return found


@every_file
def test_every_key_of_a_shipped_file_is_refused_when_misspelt(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "serve.yaml"
    paths = keys_of(yaml.safe_load(path.read_text()))
    assert len(paths) > 30
    for one in paths:
        content = yaml.safe_load(path.read_text())
        inside = content
        for step in one[:-1]:
            inside = inside[step]
        inside[f"{one[-1]}x"] = inside.pop(one[-1])
        copy.write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError) as refusal:
            read_serve_file(copy)
        assert f"{one[-1]}x" in str(refusal.value), one


def test_a_port_that_nobody_would_listen_at_is_refused() -> None:
    path = SERVE / "config-lab.yaml"
    with pytest.raises(ConfigError, match=r"service\.port is 8765.* give http_options\.port"):
        read_serve_file(path, ["service.port=8765"])
    assert read_serve_file(path, ["service.port=8765"], {"port": 8765}).schema.http_options.port == 8765


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"http_options": {"host": "0.0.0.0"}}, "there are no keys"),
        ({"http_options": {"host": "::"}}, "there are no keys"),
        ({"http_options": {"request_timeout_s": 10}}, "give at least"),
        ({"http_options": {"port": "eight"}}, "http_options.port is 'eight'"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_serve_file(SERVE / "config-lab.yaml", http=change["http_options"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  host: 127.0.0.1 ", "  root_path: '' ", "http_options.host is missing"),
        ("graceful_shutdown_timeout_s: 165", "graceful_shutdown_timeout_s: 20", "may need 165 s"),
        ("- name: Pair", "- name: Pear", "deployment 'Pear' does not exist"),
        ("user_config: {generation: 0}", "user_config: {generatoin: 1}", "the nearest known one is 'generation'"),
        ("user_config: {generation: 0}", "user_config: {max_waiting: 1}", "max_samples"),
        ("serve.app:build", "serve.app:bind", "0 of 1 applications"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (SERVE / "config-lab.yaml").read_text()
    assert old in text
    copy = tmp_path / "serve.yaml"
    copy.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_serve_file(copy)


def test_light_settings_go_over_those_of_the_start() -> None:
    args = Application.model_validate({"service": {"max_waiting": 5000}})
    light = LightSettings.read({"max_concurrent_per_key": 3, "generation": 9})
    changed = light.over(args.service)
    assert changed == args.service.model_copy(update={"max_concurrent_per_key": 3})
