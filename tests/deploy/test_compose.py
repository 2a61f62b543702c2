"""The container on a laptop, and what watches it: little may be done, and nothing but loopback is opened."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cong.cluster import check_file
from cong.cluster.images import image_trouble
from cong.service import METRICS
from serve.files import read_serve_file

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "compose"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
every_service = pytest.mark.parametrize("name", SERVICES)


@every_service
def test_a_container_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "mem_limit" in service
    assert not {"privileged", "network_mode", "pid", "devices", "cap_add"} & set(service)
    assert image_trouble(service["image"]) is None


@every_service
def test_only_this_machine_reaches_it(name: str) -> None:
    assert SERVICES[name]["ports"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


@every_service
def test_secrets_are_files_that_are_declared(name: str) -> None:
    assert set(SERVICES[name].get("secrets", ())) <= set(COMPOSE["secrets"])
    for key in SERVICES[name].get("environment", {}):
        assert not any(word in key for word in ("PASSWORD", "SECRET", "TOKEN", "KEY")) or key.endswith("__FILE")


def test_the_service_writes_to_its_volume_only_and_has_time_to_stop() -> None:
    service = SERVICES["cong"]
    assert service["read_only"] is True
    writable = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
    assert writable == ["runs:/home/ray/cong/runs"]
    served = read_serve_file(FOLDER / "serve.yaml")
    assert served.schema.http_options.host == "0.0.0.0"
    assert served.args.service.has_keys, "whoever listens on every address needs keys"
    assert Path(served.args.service.api_keys_file).parent == Path("/run/secrets")
    assert Path(served.args.service.api_keys_file).name in service["secrets"]
    (deployment,) = served.schema.applications[0].deployments
    assert int(service["stop_grace_period"].removesuffix("s")) > deployment.graceful_shutdown_timeout_s


def test_its_serve_file_has_nothing_wrong() -> None:
    check_file(FOLDER / "serve.yaml")


def test_files_that_are_mounted_or_built_from_exist() -> None:
    build = SERVICES["cong"]["build"]
    context = (FOLDER / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()
    sources = [volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]]
    for source in sources:
        if source.startswith("."):
            assert (FOLDER / source).exists(), source
        elif not source.startswith("$"):
            assert source in COMPOSE["volumes"]


def test_prometheus_asks_the_service_with_a_key() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    (found,) = job["static_configs"]
    assert found["targets"] == ["cong:8000"]
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    assert secret.name in SERVICES["prometheus"]["secrets"]
    assert config["global"]["scrape_timeout"] <= config["global"]["scrape_interval"]


def test_prometheus_calls_what_the_service_tells_as_the_dashboard_does() -> None:
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    (relabelling,) = job["metric_relabel_configs"]
    assert (relabelling["source_labels"], relabelling["target_label"]) == (["__name__"], "__name__")
    told = {name for family in METRICS for name in (family.name, f"{family.name}_bucket")}
    replacement = relabelling["replacement"].replace("${1}", r"\1")
    named = {re.sub(f"^(?:{relabelling['regex']})$", replacement, name) for name in told}
    text = (ROOT / "deploy" / "grafana" / "dashboard.json").read_text()
    assert set(re.findall(r"\bray_cong_\w+", text)) <= named
    assert "by (replica)" in text
    assert "replica" in job["static_configs"][0]["labels"]


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (host, port) = source["url"].removeprefix("http://").split(":")
    assert host in SERVICES
    assert f"127.0.0.1:{port}:{port}" in SERVICES[host]["ports"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "cong.yaml").read_text())["providers"]
    mounts = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert any(mount.startswith(provider["options"]["path"] + "/") for mount in mounts)
    assert "/etc/grafana/provisioning" in mounts


def test_the_build_context_holds_what_the_images_copy_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[1] == "*", "what is not named stays out"
    copied = set()
    for name in ("Dockerfile.cpu", "Dockerfile.cuda"):
        for line in (ROOT / "deploy" / name).read_text().splitlines():
            if line.startswith("COPY") and "--from=" not in line:
                copied |= {word for word in line.split()[1:-1] if not word.startswith("--")}
    assert copied == kept
