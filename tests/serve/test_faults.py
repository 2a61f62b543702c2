"""Parts of a running service die or get stuck; callers notice no more than they must, and everything comes back."""

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from cong.config.stream import ReadSettings
from cong.errors import ServiceError
from cong.schemas import SamplingParameters
from cong.stream import StreamReader, open_store

from .application import LIMIT_S, Deployed, eventually
from .faults import BLOCK_ENGINE, DIE_BEFORE_REPLY
from .load import under_load

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BUILDER = "tests.serve.faults:build"
LONG = SamplingParameters(max_tokens=48, min_tokens=48, ignore_eos=True)


@pytest.fixture(scope="module")
def service(deployed: Deployed) -> Deployed:
    deployed.deploy(import_path=BUILDER, num_replicas=2)
    return deployed


@pytest.fixture(autouse=True)
def two_replicas(service: Deployed) -> None:
    """Where an earlier test killed one, the next begins with two again."""
    eventually(lambda: len(service.replicas()) == 2, "two replicas")


def is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_replica_that_is_killed_hurts_only_what_it_was_answering(service: Deployed) -> None:
    """Or was sent while it died, which takes a moment: until whoever hands requests on has answered a later one."""
    before = service.replicas()
    victim = next(iter(before))
    with service.http() as http, under_load(http) as load:
        load.wait_for(10)
        killed_s = time.monotonic()
        service.kill(before[victim])
        eventually(lambda: is_gone(before[victim]), "its end", poll_s=0.001)
        gone_s = time.monotonic()
        load.wait_for(10)
        eventually(lambda: len(service.replicas()) == 2 and victim not in service.replicas(), "two replicas again")
        load.wait_for(10)
    known_s = min(one.ended_s for one in load.outcomes if one.began_s > gone_s and not one.is_failure)
    assert [one for one in load.failures if one.ended_s < killed_s or one.began_s > known_s] == []


def test_without_the_controller_every_request_is_answered(service: Deployed) -> None:
    before = service.replicas()
    controller = service.details()["controller_info"]["actor_id"]
    with service.http() as http, under_load(http) as load:
        load.wait_for(10)
        service.kill(pid_of(service, "SERVE_CONTROLLER"))
        load.wait_for(20)
        eventually(lambda: answers(lambda: service.replicas() == before), "a controller that knows the replicas")
    assert load.failures == []
    assert service.details()["controller_info"]["actor_id"] == controller


@pytest.mark.parametrize("victim", ["haproxy", "ray::HAProxyManager", "ray::ProxyActor"])
def test_a_proxy_that_is_killed_is_replaced(service: Deployed, victim: str) -> None:
    """HAProxy itself, the process of Serve's that started it, and Serve's own proxy."""
    if victim != "ray::ProxyActor" and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        pytest.skip("Serve's own proxy is the only one here")
    port = int(service.url.rpartition(":")[2])

    def standing() -> set[int]:
        """A former HAProxy ends by itself; it is the one that listens whom nobody would miss otherwise."""
        return {pid for pid in processes(victim) if victim != "haproxy" or listens(pid, port)}

    with service.http() as http, under_load(http) as load:
        load.wait_for(10)
        before = eventually(standing, "one to kill")
        for pid in before:
            with contextlib.suppress(ProcessLookupError):
                service.kill(pid)
        eventually(lambda: standing() - before, "another one in its place")
        eventually(service.is_answering, "an answer")
        num_before = len(load.outcomes)
        load.wait_for(20)
    failures = load.failures
    outage_s = max(one.ended_s for one in failures) - min(one.began_s for one in failures) if failures else 0.0
    print(f"outage without {victim}: {outage_s:.1f} s")
    assert any(not one.is_failure for one in load.outcomes[num_before:])


def test_proxies_are_looked_after_as_often_as_the_file_says(service: Deployed) -> None:
    """Serve's own settings leave callers alone for half a minute."""
    import ray

    def period_s(_: Any) -> Any:
        from ray.serve._private import constants

        return constants.PROXY_HEALTH_CHECK_PERIOD_S

    controller = service.actor("SERVE_CONTROLLER")
    assert ray.get(controller.__ray_call__.remote(period_s), timeout=LIMIT_S) == 1.0


def listens(pid: int, port: int) -> bool:
    try:
        connections = psutil.Process(pid).net_connections("inet")
    except psutil.NoSuchProcess:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections)


def processes(name: str) -> set[int]:
    """Those below this one whose program, or what Ray calls them, begins so."""
    return {
        process.pid for process in psutil.Process().children(recursive=True) if program_of(process).startswith(name)
    }


def program_of(process: psutil.Process) -> str:
    try:
        command: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return ""
    return command[0].rpartition("/")[2] if command else ""


def pid_of(service: Deployed, name: str) -> int:
    """The process of one of Serve's own actors."""
    import ray

    actor = service.actor(name)
    pid: int = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    return pid


def answers(ask: Callable[[], bool]) -> bool:
    """Whether the controller is there and says so."""
    import ray

    try:
        return ask()
    except ray.exceptions.RayError:
        return False


def test_a_stream_that_breaks_is_never_taken_for_a_finished_one(service: Deployed) -> None:
    before = service.replicas()
    with service.client(max_tries=1) as client:
        events = client.stream("Sdbgaf=", form="tokens", num_samples=512, parameters=LONG)
        assert next(events).event == "token"
        for pid in before.values():
            service.kill(pid)
        seen: set[str] = set()
        with pytest.raises(ServiceError):
            seen.update(event.event for event in events)
    assert "end" not in seen
    eventually(lambda: len(service.replicas()) == 2 and not set(service.replicas()) & set(before), "two new replicas")


def test_a_sample_that_was_stored_before_its_replica_died_is_not_made_twice(service: Deployed) -> None:
    before = service.replicas()
    parameters = SamplingParameters(max_tokens=12, seed=4711)
    with service.fault(DIE_BEFORE_REPLY), service.client() as client:
        reply = client.sample("Sdbgaf=", parameters=parameters, store="local")
    (sample,) = reply.samples
    assert sample.is_duplicate, "the second try found what the first had stored"
    kept = StreamReader(open_store(str(service.stream)), ReadSettings(is_deduplicated=False)).records()
    assert [record for record in kept if record.key == sample.record.key] == [sample.record]
    eventually(lambda: set(service.replicas()) != set(before) and len(service.replicas()) == 2, "a new replica")


def test_a_replica_with_a_stuck_engine_is_replaced(service: Deployed) -> None:
    before = service.replicas()
    with service.fault(BLOCK_ENGINE) as fault, service.http() as http, ThreadPoolExecutor(1) as pool:
        call = pool.submit(http.post, "/sample", json={"prompt": "Sdbgaf=", "parameters": {"max_tokens": 4}})
        (taken,) = eventually(lambda: list(fault.parent.glob(f"{BLOCK_ENGINE}.*")), "an engine that is stuck")
        stuck = int(taken.suffix[1:])
        assert stuck in before.values()
        eventually(lambda: is_gone(stuck), "the stuck replica is gone")
        eventually(
            lambda: len(service.replicas()) == 2 and stuck not in service.replicas().values(), "two other replicas"
        )
        with contextlib.suppress(httpx.TransportError):  # or its connection was closed
            assert call.result(timeout=LIMIT_S).status_code != 200
    with service.client() as client:
        assert client.sample("Sdbgaf=", parameters=SamplingParameters(max_tokens=4)).samples
