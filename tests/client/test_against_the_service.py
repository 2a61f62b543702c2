"""The clients against the real application: a real engine, a real stream, real sockets, real crashes."""

import asyncio
import math
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cong.client import AsyncClient, Client, Patience
from cong.errors import InvalidRequest, NotFound, PromptTooLong, StreamCut, Unauthenticated, Unreachable
from cong.schemas import Prompt, SamplingParameters, ScoreRequest
from cong.service import key_line, new_key
from cong.wire import EndEvent, SampleEvent, TokenEvent
from tests.client.service_process import ServiceProcess, ServiceThread

LONG = SamplingParameters(max_tokens=50, ignore_eos=True)
ENDLESS = SamplingParameters(max_tokens=4096, ignore_eos=True)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceThread]:
    with ServiceThread(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: ServiceThread) -> Iterator[Client]:
    with Client(service.url) as made:
        yield made


def test_samples_come_in_order_with_everything_that_is_known_of_them(client: Client) -> None:
    got = client.sample(["say hello", Prompt(text="say goodbye", prompt_id="mine")], num_samples=3)
    places = [(sample.record.prompt.text, sample.record.sample_index) for sample in got.samples]
    assert places == [(text, index) for text in ("say hello", "say goodbye") for index in range(3)]
    assert got.samples[3].record.prompt.prompt_id == "mine"
    assert got.usage.completion_tokens == sum(len(sample.record.completion_token_ids) for sample in got.samples)
    info = client.info()
    assert {network.fingerprint for network in got.samples[0].record.networks} == {
        network.fingerprint for network in info.networks
    }


def test_the_two_clients_and_the_three_forms_give_the_same_samples(client: Client, service: ServiceThread) -> None:
    document = [sample.record for sample in client.sample("say hello", num_samples=2).samples]

    async def elsewhere() -> list[TokenEvent | SampleEvent | EndEvent]:
        async with AsyncClient(service.url) as other:
            assert [s.record.key for s in (await other.sample("say hello", num_samples=2)).samples] == [
                record.key for record in document
            ]
            return [event async for event in other.stream("say hello", form="tokens", num_samples=2)]

    for events in (list(client.stream("say hello", form="tokens", num_samples=2)), asyncio.run(elsewhere())):
        assert isinstance(events[-1], EndEvent)
        for record in document:
            tokens = [e for e in events if isinstance(e, TokenEvent) and e.sample_index == record.sample_index]
            assert tuple(token.token_id for token in tokens) == record.completion_token_ids
            assert "".join(token.text for token in tokens) == record.completion_text
    samples = [event for event in client.stream("say hello", num_samples=2) if isinstance(event, SampleEvent)]
    assert {event.sample.record.completion_token_ids for event in samples} == {
        record.completion_token_ids for record in document
    }


def test_a_score_is_what_the_sample_says(client: Client) -> None:
    (sample,) = client.sample("say hello", parameters=SamplingParameters(seed=3)).samples
    record = sample.record
    reply = client.score(ScoreRequest(prompt=record.prompt, completion_token_ids=record.completion_token_ids))
    (scored,) = reply.items
    for role, logprobs in record.logprobs.items():
        assert scored.score.logprobs[role] == pytest.approx(logprobs, abs=1e-4)
    assert scored.implicit_reward_sum is not None
    assert math.isclose(scored.implicit_reward_sum, record.implicit_reward_sum or 0.0, abs_tol=1e-3)


def test_errors_come_back_as_what_they_were(client: Client) -> None:
    with pytest.raises(PromptTooLong):
        client.sample(Prompt(text="S" * 9000))
    with pytest.raises(InvalidRequest) as wrong:
        client.sample("x", parameters=SamplingParameters(weights=(1.0, 0.0, 0.0)))
    assert "weights" in wrong.value.field
    with pytest.raises((NotFound, InvalidRequest)):
        client.sample("x", method="no such method")


class Cutter:
    """A relay that ends the connection after so many bytes of the reply have passed, a number of times."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_bytes: list[int] = []
        self.num_connections = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self._is_over.is_set():
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.num_connections += 1
            limit = self.num_bytes.pop(0) if self.num_bytes else None
            far = socket.create_connection(self._target)
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()
            threading.Thread(target=self._back, args=(far, near, limit), daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with far:
            try:
                while data := near.recv(65536):
                    far.sendall(data)
            except OSError:
                return

    def _back(self, far: socket.socket, near: socket.socket, limit: int | None) -> None:
        with near:
            try:
                while data := far.recv(65536):
                    near.sendall(data if limit is None else data[:limit])
                    if limit is not None:
                        limit -= len(data)
                        if limit <= 0:
                            near.shutdown(socket.SHUT_RDWR)
                            return
            except OSError:
                return

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(60.0)
        self._listener.close()


@contextmanager
def cutting(service: ServiceThread) -> Iterator[Cutter]:
    cutter = Cutter(service.url)
    try:
        yield cutter
    finally:
        cutter.close()


@pytest.mark.parametrize("num_bytes", [1, 60, 400, 2000])
def test_a_request_that_is_tried_again_stores_one_record(service: ServiceThread, num_bytes: int) -> None:
    parameters = SamplingParameters(seed=num_bytes, max_tokens=40, ignore_eos=True)
    before = len(service.records())
    with cutting(service) as cutter:
        cutter.num_bytes = [num_bytes] * 5
        with Client(cutter.url, patience=Patience(total_s=60.0, first_pause_s=0.01)) as client:
            got = client.sample("say hello", num_samples=2, parameters=parameters, store="local")
        assert cutter.num_connections == 6
    assert [sample.stored for sample in got.samples] == ["local", "local"]
    stored = service.records()[before:]
    assert sorted(record.key for record in stored) == sorted(sample.record.key for sample in got.samples)
    by_key = {record.key: record for record in stored}
    for sample in got.samples:
        assert by_key[sample.record.key].completion_token_ids == sample.record.completion_token_ids


def test_what_is_stored_is_a_duplicate_for_a_new_request(client: Client, service: ServiceThread) -> None:
    parameters = SamplingParameters(seed=77)
    first = client.sample("say goodbye", parameters=parameters, store="local")
    num_stored = len(service.records())
    second = client.sample("say goodbye", parameters=parameters, store="local")
    assert [sample.is_duplicate for sample in second.samples] == [True]
    assert second.samples[0].record.completion_token_ids == first.samples[0].record.completion_token_ids
    assert len(service.records()) == num_stored


def test_a_stream_through_a_bad_line_is_cut_or_continued_as_asked(service: ServiceThread, client: Client) -> None:
    whole = list(client.stream("say hello", form="tokens", num_samples=2, parameters=LONG))
    with cutting(service) as cutter, Client(cutter.url, patience=Patience(first_pause_s=0.01)) as other:
        cutter.num_bytes = [2000]
        cut = other.stream("say hello", form="tokens", num_samples=2, parameters=LONG)
        assert [next(cut) for _ in range(5)] == whole[:5]
        with pytest.raises(StreamCut):
            list(cut)
        cutter.num_bytes = [1000, 3000, 5000]
        resumed = list(other.stream("say hello", form="tokens", num_samples=2, parameters=LONG, resumes=True))
        assert cutter.num_connections == 5
    tokens = {(e.sample_index, e.token_id, e.text) for e in whole if isinstance(e, TokenEvent)}
    assert {(e.sample_index, e.token_id, e.text) for e in resumed if isinstance(e, TokenEvent)} == tokens
    assert len(resumed) == len(whole)
    assert isinstance(resumed[-1], EndEvent)


def num_cancelled(service: ServiceThread) -> int:
    page = httpx.get(f"{service.url}/metrics", timeout=60.0).text
    found = re.search(r'^cong_request_finished_total\{reason="cancelled"\} (\d+)', page, re.MULTILINE)
    return int(found[1]) if found else 0


def test_leaving_a_stream_ends_the_work(client: Client, service: ServiceThread) -> None:
    before = num_cancelled(service)
    events = client.stream("say hello", form="tokens", num_samples=2, parameters=ENDLESS)
    next(iter(events))
    events.close()  # type: ignore[attr-defined]
    until_s = time.monotonic() + 60.0
    while num_cancelled(service) < before + 2 or client.health().num_running > 0:
        assert time.monotonic() < until_s, "the work goes on"
        time.sleep(0.05)


def test_a_service_that_hangs_or_dies_is_noticed(tmp_path: Path) -> None:
    with ServiceProcess(tmp_path) as running, Client(running.url, patience=Patience(max_tries=2)) as client:
        running.signal(signal.SIGSTOP)
        nothing = "nothing came|no connection within"
        with Client(running.url, patience=Patience(total_s=0.5)) as hasty, pytest.raises(Unreachable, match=nothing):
            hasty.sample("say hello")
        running.signal(signal.SIGCONT)
        events = client.stream("say hello", form="tokens", num_samples=2, parameters=ENDLESS, store="local")
        assert isinstance(next(events), TokenEvent)
        running.kill()
        with pytest.raises(StreamCut):
            list(events)
        with pytest.raises(Unreachable):
            client.sample("say hello")
        assert running.records() == []


def test_a_refused_client_comes_back_and_is_served(tmp_path: Path) -> None:
    with ServiceThread(tmp_path, max_waiting=4, max_samples=4) as running:
        patience = Patience(total_s=60.0, max_tries=200, first_pause_s=0.01, max_pause_s=0.1)

        async def crowd() -> int:
            async with AsyncClient(running.url, patience=patience) as client:
                replies = await asyncio.gather(
                    *(client.sample("say " + "x" * n, num_samples=4, parameters=LONG) for n in range(12))
                )
                return sum(len(got.samples) for got in replies)

        assert asyncio.run(crowd()) == 12 * 4


def test_a_key_is_needed_where_keys_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    monkeypatch.setenv("TEST_KEYS", key_line("tests", key))
    with ServiceThread(tmp_path, api_keys_env="TEST_KEYS") as running:
        with Client(running.url) as stranger, pytest.raises(Unauthenticated, match="CONG_API_KEY"):
            stranger.sample("say hello")
        monkeypatch.setenv("CONG_API_KEY", key)
        monkeypatch.setenv("CONG_URL", running.url)
        with Client() as known:
            assert known.sample("say hello").samples
