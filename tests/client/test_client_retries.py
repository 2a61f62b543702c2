"""Tries: what is tried again, with which key, after which pause, and for how long."""

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from cong.client import Patience
from cong.client.failure import MAX_RETRY_AFTER_S, retry_after
from cong.errors import (
    BadReply,
    ConfigError,
    Conflict,
    CongError,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    PromptTooLong,
    ServiceError,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from cong.schemas import Prompt, SamplingParameters, ScoreRequest
from cong.wire import HealthReply
from tests.client.replies import CutBody, Face, Script, error_reply, info, json_reply, record, reply

GOOD = reply([record(1)])
BUSY = error_reply(429, "rate_limit_error", "full", retry_after_s=3.0)
PATIENCE = Patience(total_s=60.0, max_tries=4, first_pause_s=0.5, max_pause_s=2.0)


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.ReadTimeout("silent"),
        httpx.RemoteProtocolError("server disconnected without sending a response"),
        httpx.Response(429),
        httpx.Response(502, text="bad gateway"),
        httpx.Response(404, text="Path '/sample' not found. Ping http://.../-/routes for available routes."),
        httpx.Response(503),
        httpx.Response(504),
        httpx.Response(500, text="Internal Server Error"),
        error_reply(503, "unavailable_error"),
        httpx.Response(200, stream=CutBody(GOOD.model_dump_json().encode()[:-3])),
        httpx.Response(200, stream=CutBody(b"", httpx.ReadError("reset"))),
        httpx.Response(200, stream=CutBody(GOOD.model_dump_json().encode()[:50], httpx.RemoteProtocolError("cut"))),
    ],
    ids=str,
)
def test_trouble_that_passes_is_tried_again_under_the_same_key(face: Face, trouble: Any) -> None:
    service = Script(trouble, json_reply(GOOD))
    assert face(service, PATIENCE).sample("hello") == GOOD
    assert len(service.requests) == 2
    assert len({*service.keys}) == 1
    assert len({request.content for request in service.requests}) == 1
    assert 0.0 <= face.clock.pauses[0] <= 0.5 or trouble.status_code == 429


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (error_reply(422, "invalid_request_error", "top_p: is 0", param="top_p"), InvalidRequest),
        (error_reply(422, "invalid_request_error", "long", code="context_length_exceeded"), PromptTooLong),
        (error_reply(401, "authentication_error"), Unauthenticated),
        (error_reply(403, "permission_error"), Forbidden),
        (error_reply(404, "not_found_error", param="method"), NotFound),
        (error_reply(409, "conflict_error"), Conflict),
        (error_reply(504, "deadline_error"), DeadlineExceeded),
        (error_reply(500, "server_error"), ServiceError),
        (httpx.Response(408), DeadlineExceeded),
        (httpx.Response(413), InvalidRequest),
        (httpx.Response(404, text="<html>nothing here</html>"), NotFound),
        (httpx.Response(307, headers={"location": "http://elsewhere/"}), BadReply),
        (httpx.Response(204), BadReply),
        (httpx.Response(200, json={"choices": []}), BadReply),
        (httpx.Response(200, json=[1]), BadReply),
        pytest.param(httpx.Response(200, content=b"[" * 100_000), BadReply, id="deep"),
    ],
    ids=str,
)
def test_what_will_not_pass_is_raised_at_once(face: Face, answer: Any, error: type[CongError]) -> None:
    service = Script(answer)
    with pytest.raises(error) as caught:
        face(service).sample("hello")
    assert type(caught.value) is error
    assert len(service.requests) == 1
    assert face.clock.pauses == []


def test_an_error_keeps_its_facts(face: Face) -> None:
    wrong = error_reply(422, "invalid_request_error", "top_p: is 0", param="top_p", request_id="r-9")
    with pytest.raises(InvalidRequest, match=r"^top_p: is 0 \[request r-9\]$") as caught:
        face(Script(wrong)).sample("hello")
    assert caught.value.field == "top_p"
    with pytest.raises(Overloaded, match=r"full.*given up after 1 tries") as busy:
        face(Script(BUSY), Patience(max_tries=1)).sample("hello")
    assert busy.value.retry_after_s == 3.0


def test_the_key_is_new_in_every_call_and_can_be_given(face: Face) -> None:
    service = Script(json_reply(GOOD))
    asker = face(service)
    asker.sample("hello")
    asker.sample("hello")
    asker.sample("hello", idempotency_key="mine")
    assert len({*service.keys}) == 3
    assert service.keys[2] == "mine"


def test_a_proxy_without_a_service_is_told_with_the_address(face: Face) -> None:
    path = httpx.Response(404, text="Path '/v2/sample' not found. Ping http://.../-/routes for available routes.")
    with pytest.raises(Unavailable, match=r"no service, which passes where one starts; check the address \(given up"):
        face(Script(path), PATIENCE).sample("hello")


def test_tries_end_by_number(face: Face) -> None:
    service = Script(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable, match=r"no connection: refused \(given up after 4 tries"):
        face(service, PATIENCE).sample("hello")
    assert len(service.requests) == 4


def test_pauses_double_up_to_a_bound_and_are_not_all_the_same(face: Face) -> None:
    service = Script(httpx.Response(503))
    with pytest.raises(Unavailable):
        face(service, Patience(total_s=1e6, max_tries=200, first_pause_s=0.5, max_pause_s=8.0)).sample("hello")
    bounds = [min(8.0, 0.5 * 2**number) for number in range(199)]
    assert all(0.0 <= pause <= bound for pause, bound in zip(face.clock.pauses, bounds, strict=True))
    late = face.clock.pauses[10:]
    assert len({*late}) == len(late)
    # Full jitter: uniform between 0 and 8, so the mean of 189 pauses is 4 with a standard error of 0.17.
    assert 3.2 < sum(late) / len(late) < 4.8


def test_a_wait_that_the_service_asks_for_is_kept(face: Face) -> None:
    service = Script(BUSY, httpx.Response(429, headers={"retry-after": "7"}), json_reply(GOOD))
    assert face(service, PATIENCE).sample("hello") == GOOD
    first, second = face.clock.pauses
    assert 3.0 <= first <= 3.75
    assert 7.0 <= second <= 8.75


def test_a_wait_that_does_not_fit_into_the_time_is_not_begun(face: Face) -> None:
    service = Script(httpx.Response(503, headers={"retry-after": "61"}))
    with pytest.raises(Unavailable, match="of 60 s are left") as caught:
        face(service, PATIENCE).sample("hello")
    assert caught.value.retry_after_s == 61.0
    assert len(service.requests) == 1
    assert face.clock.pauses == []


def test_the_whole_call_has_a_limit_and_each_try_gets_what_is_left(face: Face) -> None:
    service = Script(httpx.Response(503))
    with pytest.raises(Unavailable):
        face(service, Patience(total_s=10.0, max_tries=1000, first_pause_s=1.0, max_pause_s=4.0)).sample("hello")
    assert sum(face.clock.pauses) < 10.0
    limits = [request.extensions["timeout"]["read"] for request in service.requests]
    assert limits == sorted(limits, reverse=True)
    assert 0.0 < limits[-1] < limits[0] == 10.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "5"}, 5.0),
        ({"retry-after": " 0.25 "}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "1e300"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": format_datetime(datetime.fromtimestamp(1_800_000_090, UTC), usegmt=True)}, 90.0),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:00 GMT"}, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now_s=1_800_000_000.0) == seconds


def test_a_wait_until_a_date_is_kept(face: Face) -> None:
    later = format_datetime(datetime.fromtimestamp(1_800_000_000.0 + 1000.0 + 20.0, UTC), usegmt=True)
    service = Script(httpx.Response(503, headers={"retry-after": later}), json_reply(GOOD))
    face(service, PATIENCE).sample("hello")
    assert 20.0 <= face.clock.pauses[0] <= 25.0


def test_a_status_counts_even_if_the_words_behind_it_are_cut(face: Face) -> None:
    service = Script(httpx.Response(403, stream=CutBody(b"{", httpx.ReadError("reset"))))
    with pytest.raises(Forbidden):
        face(service).sample("hello")


def test_a_request_carries_who_asks_and_what(face: Face) -> None:
    service = Script(json_reply(GOOD))
    face(service).sample(
        ["hello", Prompt(text="again", prompt_id="p1")],
        num_samples=2,
        parameters=SamplingParameters(temperature=0.5),
        store="local",
        deadline_s=9.0,
    )
    (request,) = service.requests
    assert str(request.url) == "http://service.test/cong/sample"
    assert request.headers["authorization"] == "Bearer k"
    assert request.headers["accept"] == "application/json"
    assert json.loads(request.content) == {
        "prompts": [{"text": "hello"}, {"text": "again", "prompt_id": "p1"}],
        "num_samples": 2,
        "parameters": {"temperature": 0.5},
        "store": "local",
        "stream": "none",
        "deadline_s": 9.0,
    }


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": "x", "num_samples": 0}, "num_samples"),
        ({"prompts": "x", "deadline_s": -1.0}, "deadline_s"),
        ({"prompts": "x", "idempotency_key": "a b"}, "idempotency_key"),
        ({"prompts": "half a pair \ud800"}, "prompts.0.text"),
    ],
)
def test_a_wrong_request_is_not_sent(face: Face, given: dict[str, Any], field: str) -> None:
    service = Script(json_reply(GOOD))
    with pytest.raises(InvalidRequest) as caught:
        face(service).sample(**given)
    assert caught.value.field == field
    assert not service.requests


def test_a_sampling_parameter_in_the_wrong_place_is_told_its_own(face: Face) -> None:
    service = Script(json_reply(GOOD))
    remedy = r"temperature: is a sampling parameter; give it by parameters=SamplingParameters\(temperature=\.\.\.\)"
    with pytest.raises(InvalidRequest, match=remedy):
        face(service).sample("x", num_samples=2, temperature=0.7)
    _, error = face(service).follow("x", temperature=0.7)
    assert isinstance(error, InvalidRequest)
    with pytest.raises(InvalidRequest, match=r"stream: is no option; .* the method says"):
        face(service).sample("x", stream="tokens")
    with pytest.raises(InvalidRequest, match="nonsense: is not known here"):
        face(service).sample("x", nonsense=0.7)
    assert not service.requests


def test_what_only_reads_is_tried_again_too(face: Face) -> None:
    service = Script(httpx.ReadError("reset"), json_reply(info()))
    assert face(service).info() == info()
    service = Script(httpx.ConnectError("refused"), httpx.Response(400))
    with pytest.raises(InvalidRequest):
        face(service).score(ScoreRequest(prompt=Prompt(text="a"), completion_text="b"))
    assert len(service.requests) == 2


@pytest.mark.parametrize("status", ["starting", "draining", "stuck", "broken"])
def test_health_is_told_as_it_is(face: Face, status: Any) -> None:
    service = Script(json_reply(HealthReply(status=status), 503))
    assert face(service).health().status == status
    assert len(service.requests) == 1


def test_health_of_nothing_is_an_error(face: Face) -> None:
    with pytest.raises(Unavailable):
        face(Script(httpx.Response(503, text="no backend"))).health()
    with pytest.raises(Unreachable):
        face(Script(httpx.ConnectError("refused"))).health()


def test_waiting_for_a_service_is_told_once_at_its_beginning(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    service = Script(httpx.ConnectError("refused"), httpx.Response(404), json_reply(HealthReply(status="ok")))
    face(service).wait_ready(60.0)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "cong.client.service"]
    assert "is waited for up to 60 s" in said
    assert "refused" in said


def test_waiting_for_a_service_ends_when_it_is_well(face: Face) -> None:
    service = Script(
        httpx.ConnectError("refused"),
        httpx.Response(404),
        json_reply(HealthReply(status="starting"), 503),
        json_reply(HealthReply(status="ok")),
    )
    assert face(service).wait_ready(60.0).status == "ok"
    assert len(service.requests) == 4


@pytest.mark.parametrize("method", ["health", "wait_ready"])
@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("/v1", "give http://service.test$"),
        ("/cong/v1/completions", "give http://service.test/cong$"),
        ("/elsewhere", "give http://service.test$"),
        ("", "check host and port$"),
    ],
)
def test_an_address_below_the_service_s_own_is_told_at_once(face: Face, method: str, path: str, remedy: str) -> None:
    """What answers in the words of a service, and has no health, will have none later."""
    service = Script(error_reply(404, "not_found_error", "there is no such route"))
    with pytest.raises(ConfigError, match=rf"^http://service.test{path} has no /health: .* {remedy}"):
        getattr(face(service, url=f"http://service.test{path}/"), method)()
    assert len(service.requests) == 1


@pytest.mark.parametrize("method", ["health", "wait_ready"])
@pytest.mark.parametrize(
    ("status", "reply", "told"),
    [
        (307, {"headers": {"location": "https://else.test/"}}, "status 307; it points to 'https://else.test/'; give"),
        (200, {"text": "<html>hi</html>"}, "status 200, '<html>hi</html>'; check the address"),
        (200, {"json": {"state": "UP"}}, r"the reply is no HealthReply \(.*\); is it cong, and of this version"),
        (200, {}, "status 200; check the address"),
    ],
)
def test_a_stranger_at_the_address_is_told_at_once(
    face: Face, method: str, status: int, reply: dict[str, Any], told: str
) -> None:
    """Neither a redirect nor a page becomes a service of cong by waiting for it."""
    service = Script(httpx.Response(status, **reply))
    with pytest.raises(BadReply, match=rf"^http://service.test/cong: {told}"):
        getattr(face(service), method)()
    assert len(service.requests) == 1


def test_a_page_in_the_place_of_samples_may_pass_and_is_told_in_the_end(face: Face) -> None:
    page = httpx.Response(200, text="<html>We are back soon</html>")
    assert face(Script(page, json_reply(GOOD))).sample("x") == GOOD
    service = Script(page)
    with pytest.raises(BadReply, match=r"status 200, '<html>We are back soon</html>'; check the address \(given up"):
        face(service, patience=Patience(max_tries=3)).sample("x")
    assert len(service.requests) == 3


def test_a_health_that_was_cut_is_asked_for_again(face: Face) -> None:
    cut = httpx.Response(200, headers={"content-type": "application/json"}, content=b'{"status": "o')
    assert face(Script(cut, json_reply(HealthReply(status="ok")))).wait_ready(60.0).status == "ok"


def test_a_connection_that_breaks_without_a_word_is_told_by_its_kind(face: Face) -> None:
    with pytest.raises(Unreachable, match=r"the connection broke: ReadError$"):
        face(Script(httpx.ReadError(""))).health()


def test_a_limit_that_is_no_number_ends_the_wait(face: Face) -> None:
    with pytest.raises(Unavailable, match="is not ready after nan s"):
        face(Script(httpx.ConnectError("refused"))).wait_ready(float("nan"))


def test_waiting_for_a_service_has_a_limit_and_says_what_was_last(face: Face) -> None:
    service = Script(json_reply(HealthReply(status="starting"), 503))
    with pytest.raises(Unavailable, match=r"not ready after 30 s: it is starting$"):
        face(service).wait_ready(30.0)
    assert face.clock.now_s <= 1030.0
    service = Script(json_reply(HealthReply(status="broken", reason="the engine has failed"), 503))
    with pytest.raises(Unavailable, match=r"it is broken \(the engine has failed\)$"):
        face(service).wait_ready(10.0)
    with pytest.raises(Unauthenticated):
        face(Script(httpx.Response(401))).wait_ready(30.0)
