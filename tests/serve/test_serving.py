"""What callers get through the proxy is what the engine gives, kept as asked, for those who may ask, within limits."""

import contextlib
import json
import os
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import psutil
import pytest
from ray.serve.generated.serve_pb2 import ASGIRequest  # type: ignore[attr-defined]
from ray.serve.generated.serve_pb2_grpc import ASGIServiceStub

from cong.config.stream import ReadSettings
from cong.engine import Engine
from cong.models import load_networks
from cong.schemas import Prompt, SampleRequest, SamplingParameters, ScoreRequest
from cong.service import key_line, new_key
from cong.stream import StreamReader, open_store
from serve.private import TOKEN

from ..ray_session import FOLDER
from .application import LIMIT_S, Deployed, eventually
from .test_dashboard import drawn

pytestmark = pytest.mark.ray

PROMPTS = ("Sdbgaf=", "Rhello=", "Mabc=")
PARAMETERS = SamplingParameters.contrastive(alpha=0.4, max_tokens=20, seed=5)
LONG: dict[str, Any] = {
    "prompt": "Sdbgaf=",
    "num_samples": 1024,
    "parameters": {"max_tokens": 48, "min_tokens": 48, "ignore_eos": True},
}
"""Takes far longer than any test waits for it."""
SHORT = {**LONG, "num_samples": 16}
CANCELLED = 'cong_request_finished_total{reason="cancelled"}'
REPLICA = "ray::ServeRepli"


@pytest.fixture(scope="module")
def service(deployed: Deployed) -> Deployed:
    deployed.deploy()
    return deployed


@pytest.fixture(scope="module")
def engine(service: Deployed) -> Engine:
    config = service.file().args.run()
    return Engine(load_networks(config.models), config.engine)


@pytest.fixture
def http(service: Deployed) -> Iterator[httpx.Client]:
    with service.http() as client:
        yield client


def test_samples_are_those_of_the_engine(service: Deployed, engine: Engine) -> None:
    with service.client() as client:
        reply = client.sample(PROMPTS, num_samples=2, parameters=PARAMETERS)
    requests = [SampleRequest(prompt=Prompt(text=text), parameters=PARAMETERS, num_samples=2) for text in PROMPTS]
    expected = sorted(
        (record for record in engine.generate(requests)),
        key=lambda record: (PROMPTS.index(record.prompt.text or ""), record.sample_index),
    )
    answered = [sample.record for sample in reply.samples]
    assert [record.completion_token_ids for record in answered] == [record.completion_token_ids for record in expected]
    assert [record.key for record in answered] == [record.key for record in expected]
    for one, other in zip(answered, expected, strict=True):
        assert one.mixture_logprobs == pytest.approx(other.mixture_logprobs, abs=1e-4)


def test_streamed_tokens_make_up_the_same_samples(service: Deployed, engine: Engine) -> None:
    request = SampleRequest(prompt=Prompt(text=PROMPTS[0]), parameters=PARAMETERS)
    (expected,) = engine.generate([request])
    with service.client() as client:
        events = list(client.stream(PROMPTS[0], form="tokens", parameters=PARAMETERS))
    tokens = [event for event in events if event.event == "token"]
    assert tuple(event.token_id for event in tokens) == expected.completion_token_ids
    assert "".join(event.text for event in tokens) == expected.completion_text
    assert events[-1].event == "end"


def test_scores_are_those_of_the_engine(service: Deployed, engine: Engine) -> None:
    requests = [SampleRequest(prompt=Prompt(text=text), parameters=PARAMETERS) for text in PROMPTS]
    records = list(engine.generate(requests))
    items = [ScoreRequest(prompt=one.prompt, completion_token_ids=one.completion_token_ids) for one in records]
    with service.client() as client:
        reply = client.score(items)
    for record, answered in zip(records, reply.items, strict=True):
        for role, logprobs in record.logprobs.items():
            assert answered.score.logprobs[role] == pytest.approx(logprobs, abs=1e-4)
        assert answered.implicit_reward_sum == pytest.approx(record.implicit_reward_sum, abs=1e-3)


def test_openai_s_own_client_is_served(service: Deployed, engine: Engine) -> None:
    request = SampleRequest(prompt=Prompt(text=PROMPTS[0]), parameters=PARAMETERS)
    (expected,) = engine.generate([request])
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["lab"]
        whole = client.completions.create(model="lab", prompt=PROMPTS[0], max_tokens=20, seed=5, temperature=1.0)
        assert whole.choices[0].text == expected.completion_text
        parts = client.completions.create(
            model="lab", prompt=PROMPTS[0], max_tokens=20, seed=5, temperature=1.0, stream=True
        )
        assert "".join(part.choices[0].text for part in parts if part.choices) == expected.completion_text
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="another", prompt=PROMPTS[0])


def test_a_sample_that_was_to_be_kept_is_in_the_stream_when_it_is_answered(service: Deployed) -> None:
    parameters = SamplingParameters.contrastive(alpha=0.4, max_tokens=12, seed=77)
    with service.client() as client:
        first = client.sample(PROMPTS, num_samples=3, parameters=parameters, store="local")
        kept = {record.key: record for record in records_in(service)}
        again = client.sample(PROMPTS, num_samples=3, parameters=parameters, store="local")
    assert all(sample.stored != "none" and not sample.is_duplicate for sample in first.samples)
    assert all(kept[sample.record.key] == sample.record for sample in first.samples)
    assert all(sample.is_duplicate for sample in again.samples)
    assert [sample.record for sample in again.samples] == [sample.record for sample in first.samples]
    (replica,) = service.replicas()
    assert {kept[sample.record.key].writer for sample in first.samples} == {f"serve-{replica}"}


def records_in(service: Deployed) -> list[Any]:
    reader = StreamReader(open_store(str(service.stream)), ReadSettings())
    return list(reader.records())


@pytest.mark.parametrize("headers", [{}, {"x-request-disconnect-disabled": "?1"}, {"x-request-timeout-seconds": "0"}])
@pytest.mark.parametrize("form", ["none", "tokens"])
def test_a_caller_that_leaves_frees_its_seats(service: Deployed, headers: dict[str, str], form: str) -> None:
    with service.http(headers=headers) as http, ThreadPoolExecutor(4) as pool:
        open_before, cancelled_before = service.metric("cong_calls_open"), service.metric(CANCELLED)

        def ask() -> None:
            try:
                with http.stream("POST", "/sample", json={**LONG, "stream": form}) as reply:
                    for _ in reply.iter_bytes():
                        pass
            except httpx.TransportError:
                pass

        # Two calls: both sets of samples run or wait.
        calls = [pool.submit(ask) for _ in range(2)]
        eventually(lambda: service.metric("cong_calls_open") >= open_before + 2, "two calls are being served")
        eventually(lambda: service.metric("cong_requests_running") > 0, "samples have seats")
        for connection in psutil.Process().net_connections("tcp"):
            # Gone at once, as a process that was killed: no word of leave from httpx.
            if connection.raddr and connection.raddr.port == int(service.url.rsplit(":", 1)[1]):
                shut(connection.fd)
        eventually(lambda: all_free(service), "all seats are free again")
        # Of 2,048 samples most had not begun.
        assert service.metric(CANCELLED) - cancelled_before > 1024
        for call in calls:
            call.result(timeout=LIMIT_S)


def all_free(service: Deployed) -> bool:
    return service.metric("cong_requests_running") == 0 and service.metric("cong_requests_waiting") == 0


def shut(descriptor: int) -> None:
    """End a connection of this process, whoever uses it."""
    twin = socket.socket(fileno=os.dup(descriptor))
    try:
        twin.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    finally:
        twin.close()


@pytest.mark.parametrize("headers", [{}, {"x-request-timeout-seconds": "0"}, {"x-request-disconnect-disabled": "?1"}])
def test_a_deadline_holds_whatever_the_caller_sends(service: Deployed, headers: dict[str, str]) -> None:
    with service.http(headers=headers) as http:
        reply = http.post("/sample", json={**LONG, "deadline_s": 1.0})
    if reply.status_code == 200:
        assert "deadline" in {sample["record"]["finish_reason"] for sample in reply.json()["samples"]}
    else:  # where something else keeps the processors busy; Serve's own 408 has no document
        assert (reply.status_code, reply.json()["error"]["code"]) == (408, "deadline_exceeded")
    eventually(lambda: all_free(service), "all seats are free again")


def test_a_body_that_does_not_arrive_is_not_waited_for(service: Deployed) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    head = (
        f"POST /sample HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {service.key}\r\n"
        "x-request-timeout-seconds: 0\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_overload_is_answered_with_429_and_the_time_to_come_back(service: Deployed) -> None:
    short = {**LONG, "deadline_s": 3.0}
    with service.http() as http, ThreadPoolExecutor(12) as pool:
        replies = [call.result() for call in [pool.submit(http.post, "/sample", json=short) for _ in range(12)]]
    # Where something else keeps the processors busy, nothing may have been drawn when the deadline passes: 408.
    assert {429} < {reply.status_code for reply in replies} <= {200, 408, 429}
    refused = [reply for reply in replies if reply.status_code == 429]
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    assert all(reply.json()["error"]["type"] == "rate_limit_error" for reply in refused)


ROUTES = [
    ("POST", "/sample"),
    ("POST", "/score"),
    ("GET", "/info"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/nothing"),
    ("PUT", "/sample"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the niceness of a thread")
def test_those_that_answer_go_before_the_engine(service: Deployed) -> None:
    (replica,) = service.replicas().values()
    niceness = {}
    for one in psutil.Process(replica).threads():
        with contextlib.suppress(ProcessLookupError):  # threads of a pool come and go
            niceness[one.id] = os.getpriority(os.PRIO_PROCESS, one.id)
    assert niceness[replica] == os.getpriority(os.PRIO_PROCESS, 0)
    assert max(niceness.values()) == 19


@pytest.mark.parametrize("key", ["", "cong-wrong", "tests"])
def test_nothing_works_without_a_key(service: Deployed, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=service.url, headers=headers, timeout=30.0) as http:
        for method, path in ROUTES:
            reply = http.request(method, path, content=b"{")
            assert reply.status_code in (401, 403), f"{method} {path} answers {reply.status_code}"
        assert http.get("/health").status_code == 200


def test_the_routes_that_need_a_key_are_all_there_are(service: Deployed, http: httpx.Client) -> None:
    described = http.get("/openapi.json").raise_for_status().json()["paths"]
    assert set(described) - {"/health"} <= {path for _, path in ROUTES}


def listeners() -> list[tuple[str, str, int]]:
    """Name of the process, address and port of every socket that this process or one below it listens on."""
    return [
        listener
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
        for listener in listeners_of(process)
    ]


def listeners_of(process: psutil.Process) -> list[tuple[str, str, int]]:
    try:
        name, connections = process.name(), process.net_connections("inet")
    except psutil.NoSuchProcess:
        return []
    listening = [one.laddr for one in connections if one.status == psutil.CONN_LISTEN]
    return [(name, address.ip.removeprefix("::ffff:"), address.port) for address in listening]


def of_one_replica(found: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Those of an earlier version may listen for as long as they stop."""
    return found if sum(name.startswith(REPLICA) and ip != "127.0.0.1" for name, ip, _ in found) == 1 else []


def test_nothing_but_a_port_that_asks_for_the_token_listens_beyond_loopback(service: Deployed, tmp_path: Path) -> None:
    found = eventually(lambda: of_one_replica(listeners()), "no replica but one listens")
    assert (service.url.removeprefix("http://127.0.0.1:"), "127.0.0.1") in {(str(port), ip) for _, ip, port in found}
    # Serve gives each replica a port for calls between deployments, on every address. What it is sent is unpickled.
    beyond = [(name, port) for name, ip, port in found if ip != "127.0.0.1"]
    assert [name.startswith(REPLICA) for name, _ in beyond] == [True]
    ((_, port),) = beyond
    canary = tmp_path / "canary"
    for token in ("", "wrong"):
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = ASGIServiceStub(channel).HandleRequest  # type: ignore[no-untyped-call]
            poison = ASGIRequest(pickled_request_metadata=pickle.dumps(Creates(canary)))
            with pytest.raises(grpc.RpcError) as refusal:
                call(poison, metadata=metadata, timeout=LIMIT_S)
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not canary.exists()


class Creates:
    """Creates a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_ray_itself_asks_for_the_token(service: Deployed) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    program = f"from ray._raylet import GcsClient; GcsClient({address!r})"
    for token, is_let_in in (((FOLDER / TOKEN).read_text(), True), ("0" * 64, False)):
        environment = {**os.environ, "RAY_AUTH_TOKEN": token}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode == 0) == is_let_in, done.stderr
        assert ("Auth" in done.stderr) != is_let_in, done.stderr


def test_light_settings_change_without_a_restart(service: Deployed) -> None:
    before = service.replicas()
    other = new_key()
    headers = {"Authorization": f"Bearer {other}"}
    assert httpx.get(f"{service.url}/info", headers=headers, timeout=LIMIT_S).status_code == 401
    service.keys_file.write_text(key_line("tests", service.key) + "\n" + key_line("other", other) + "\n")
    service.deploy(user_config={"generation": 1, "max_concurrent_per_key": 1})
    eventually(
        lambda: httpx.get(f"{service.url}/info", headers=headers, timeout=LIMIT_S).status_code == 200, "the new key"
    )
    with service.http() as http, http.stream("POST", "/sample", json={**LONG, "stream": "samples"}) as first:
        assert first.status_code == 200, first.read()
        assert [http.post("/sample", json=SHORT).status_code for _ in range(2)] == [429, 429]
    # Leaving user_config out would change nothing: Serve has nothing to hand in then.
    service.deploy(user_config={"generation": 2})
    with service.http() as http, ThreadPoolExecutor(4) as pool:
        replies = [call.result() for call in [pool.submit(http.post, "/sample", json=SHORT) for _ in range(3)]]
    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert service.replicas() == before


def test_serve_s_own_queue_is_bounded_too(service: Deployed) -> None:
    before = service.replicas()
    service.deploy(max_ongoing_requests=1, max_queued_requests=1)
    short = {**LONG, "num_samples": 64, "deadline_s": 2.0}
    with service.http() as http, ThreadPoolExecutor(8) as pool:

        def refused() -> list[httpx.Response]:
            replies = [call.result() for call in [pool.submit(http.post, "/sample", json=short) for _ in range(8)]]
            # 408: nothing was drawn before the deadline, because something else keeps the processors busy.
            assert {reply.status_code for reply in replies} & {200, 408}
            assert {reply.status_code for reply in replies} <= {200, 408, 429}
            return [reply for reply in replies if reply.status_code == 429]

        # Whatever hands requests on hears of the new bounds a moment later.
        for reply in eventually(refused, "more than the bounds allow are refused"):
            assert int(reply.headers["retry-after"]) >= 1
    service.deploy()
    assert service.replicas() == before


def test_each_request_has_a_line_of_json_without_its_prompt(service: Deployed) -> None:
    with service.http(headers={"x-request-id": "find-me"}) as http:
        body = {"prompt": "Rjustonce=", "parameters": {"max_tokens": 2}}
        assert http.post("/sample", json=body).headers["x-request-id"] == "find-me"
    folder = FOLDER / "session_latest" / "logs" / "serve"

    def lines() -> list[dict[str, Any]]:
        # The last line may be half written.
        text = "".join(path.read_text().rpartition("\n")[0] + "\n" for path in folder.glob("replica_*.log"))
        assert "justonce" not in text
        entries = [json.loads(line) for line in text.splitlines() if line]
        return [entry for entry in entries if "POST /sample" in entry["message"] and "find-me" in json.dumps(entry)]

    (line,) = eventually(lines, "the request's line")
    assert line["caller"] == "tests"
    assert line["num_completion_tokens"] == 2


def metrics_port() -> int:
    import ray

    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    port: int = node["MetricsExportPort"]
    return port


def test_the_dashboard_s_metrics_are_on_ray_s_page(service: Deployed) -> None:
    with service.client() as client:
        # Longer than a block of keys and values, so that the two samples share one.
        parameters = SamplingParameters(max_tokens=9, seed=9)
        for _ in range(2):
            client.sample("Sdbgaf=" * 5, num_samples=2, parameters=parameters, store="local")
        client.score(ScoreRequest(prompt=Prompt(text="Sdbgaf="), completion_text=">a."))
    with service.http() as http:
        assert http.get("/nothing").status_code == 404
    page = f"http://127.0.0.1:{metrics_port()}/metrics"
    # Counters appear with their first count, and these count what does not happen here.
    never = {"ray_cong_preemptions_total", "ray_cong_stream_failures_total"}

    def missing() -> set[str]:
        exported = set(re.findall(r"^(ray_\w+)", httpx.get(page, timeout=LIMIT_S).text, re.MULTILINE))
        return set(drawn()) - never - exported

    with suppress(AssertionError):
        eventually(lambda: not missing(), "every metric that a panel asks for")
    assert missing() == set()
