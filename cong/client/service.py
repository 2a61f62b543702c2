"""The service as seen from outside: every conversation with it, tries included. Holds no connection and never waits."""

import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from cong import __version__
from cong.client.calls import (
    JSON,
    CutDocument,
    Prompts,
    SampleOptions,
    get,
    read_document,
    read_event,
    sample_call,
    score_call,
)
from cong.client.events import Heard, Lines
from cong.client.failure import Failure, broken, cut, document_of, refused, told
from cong.client.patience import Patience, Tries
from cong.client.talk import Broken, Close, Emit, Head, HttpCall, Open, Pause, Read, Talk
from cong.errors import BadReply, ConfigError, Forbidden, Unauthenticated, Unavailable
from cong.schemas import ScoreRequest
from cong.wire import NDJSON, EndEvent, HealthReply, InfoReply, SampleReply, ScoreReply, StreamForm

URL_VARIABLE = "CONG_URL"
KEY_VARIABLE = "CONG_API_KEY"

MAX_REPLY_BYTES = 1 << 30
_HEALTH_S = 10.0
logger = logging.getLogger(__name__)

_READY_POLL_S = 0.5

Model = TypeVar("Model", bound=BaseModel)


def service_url(url: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The address of the service, without a slash at its end."""
    given = (url or environment.get(URL_VARIABLE, "")).strip().rstrip("/")
    if not given:
        raise ConfigError(f"no address of a service is given; give url, or set {URL_VARIABLE}")
    try:
        parts = urlsplit(given)
        is_host = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ConfigError(f"{given!r} is no address of a service ({error}); write it as http://host:port") from error
    if not is_host or parts.query or parts.fragment:
        raise ConfigError(f"{given!r} is no address of a service; write it as http://host:port")
    if parts.username or parts.password:
        raise ConfigError(
            f"the address of {parts.hostname} holds a password; give the key by {KEY_VARIABLE} or api_key"
        )
    return given


def _beside(url: str) -> str:
    path = urlsplit(url).path
    above = url.removesuffix(path) + path[: max(path.find("/v1"), 0)]
    remedy = f"it takes the address without the paths below it: give {above}" if path else "check host and port"
    return f"{url} has no /health: what answers there is no service of cong, or another part of one; {remedy}"


def _state(health: HealthReply) -> str:
    return f"it is {health.status}" + (f" ({health.reason})" if health.reason else "")


def _key(api_key: str | None, environment: Mapping[str, str] = os.environ) -> str:
    key = (api_key if api_key is not None else environment.get(KEY_VARIABLE, "")).strip()
    if not key.isascii() or not (key.isprintable() and " " not in key):
        raise ConfigError(f"the API key holds spaces or characters that are not ASCII; check {KEY_VARIABLE} or api_key")
    return key


@dataclass(frozen=True)
class Times:
    """Clocks and chance, given so that tests need not wait."""

    clock: Callable[[], float]
    """Seconds that only grow."""
    time_of_day: Callable[[], float]
    """Seconds since 1970."""
    rng: random.Random


class Service:
    """What can be asked of a service, as conversations."""

    def __init__(self, url: str | None, api_key: str | None, patience: Patience, times: Times) -> None:
        self.url = service_url(url)
        self._patience = patience
        self._times = times
        key = _key(api_key)
        self.headers = {"User-Agent": f"cong/{__version__}", "Accept-Encoding": "identity"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def sample(self, prompts: Prompts, options: SampleOptions) -> Talk[SampleReply]:
        """Samples in one document."""
        return self._ask(sample_call(prompts, options, "none"), SampleReply)

    def stream(self, prompts: Prompts, form: StreamForm, resumes: bool, options: SampleOptions) -> Talk[None]:
        """Samples as they come; emits every event, the last one included."""
        return self._follow(sample_call(prompts, options, form), resumes)

    def score(self, items: ScoreRequest | Sequence[ScoreRequest], deadline_s: float | None) -> Talk[ScoreReply]:
        """Log-probs of given texts."""
        return self._ask(score_call(items, deadline_s), ScoreReply)

    def info(self) -> Talk[InfoReply]:
        """What is deployed."""
        return self._ask(get("/info"), InfoReply)

    def health(self) -> Talk[HealthReply]:
        """How the service is now: asked once, whatever the answer."""
        tries = self._tries(min(_HEALTH_S, self._patience.total_s))
        answer = yield from self._health(tries)
        if isinstance(answer, Failure):
            raise answer.error("")
        return answer

    def wait_ready(self, timeout_s: float) -> Talk[HealthReply]:
        """Ask until the service is well; what will not become one by waiting is told at once."""
        deadline = self._times.clock() + timeout_s
        is_told = False
        while True:
            left_s = deadline - self._times.clock()
            answer = yield from self._health(self._tries(max(0.001, min(_HEALTH_S, left_s))))
            if isinstance(answer, HealthReply) and answer.status == "ok":
                return answer
            state = _state(answer) if isinstance(answer, HealthReply) else str(answer.error(""))
            if isinstance(answer, Failure) and isinstance(answer.error(""), Unauthenticated | Forbidden | BadReply):
                raise answer.error("")
            if not self._times.clock() + _READY_POLL_S < deadline:  # so put, it ends with NaN too
                raise Unavailable(f"{self.url} is not ready after {timeout_s:g} s: {state}")
            if not is_told:
                # Whoever has mistyped an address should not learn it when the whole time is over.
                logger.warning("%s is not ready, and is waited for up to %g s: %s", self.url, timeout_s, state)
                is_told = True
            yield Pause(_READY_POLL_S)

    # Conversations.

    def _ask(self, call: HttpCall, model: type[Model]) -> Talk[Model]:
        tries = self._tries(self._patience.total_s)
        while True:
            answer = yield from self._try(call, model, tries)
            if not isinstance(answer, Failure):
                return answer
            yield Pause(tries.pause_after(answer))

    def _try(self, call: HttpCall, model: type[Model], tries: Tries) -> Talk[Model | Failure]:
        head = yield Open(call, tries.connect_s, tries.left_s)
        if isinstance(head, Broken):
            return broken(head, self.url)
        body = yield from self._body(tries)
        if head.status != 200:
            # A status says enough, even where the words that come with it are cut.
            return self._refused(head, b"" if isinstance(body, Broken) else body)
        if isinstance(body, Broken):
            return broken(body, self.url)
        if not head.headers.get("content-type", JSON).startswith(JSON):
            # The page of a proxy, which may pass, or of an address that is no cong: the last try tells what it says.
            return replace(self._refused(head, body), is_passing=True)
        try:
            return read_document(model, body, self.url)
        except CutDocument as error:
            return broken(Broken(str(error)), self.url)

    def _body(self, tries: Tries) -> Talk[bytes | Broken]:
        parts: list[bytes] = []
        num_bytes = 0
        while True:
            part: bytes | Broken = yield Read()
            if isinstance(part, bytes) and part and tries.left_s <= 0:
                part = Broken(f"the reply was not complete within {self._patience.total_s:g} s")
            if isinstance(part, Broken) or not part:
                yield Close()
                return part if isinstance(part, Broken) else b"".join(parts)
            parts.append(part)
            num_bytes += len(part)
            if num_bytes > MAX_REPLY_BYTES:
                yield Close()
                raise BadReply(f"{self.url}: the reply has more than {MAX_REPLY_BYTES} bytes")

    def _health(self, tries: Tries) -> Talk[HealthReply | Failure]:
        call = get("/health")
        head = yield Open(call, tries.connect_s, tries.left_s)
        if isinstance(head, Broken):
            return broken(head, self.url)
        body = yield from self._body(tries)
        if isinstance(body, Broken):
            return broken(body, self.url)
        if head.status in (200, 503):
            try:
                return read_document(HealthReply, body, self.url)
            except CutDocument as error:
                if head.status == 200 and head.headers.get("content-type", "").startswith(JSON):
                    return broken(Broken(str(error)), self.url)
            except BadReply:
                # What stands between us and the service answers 503 as well, in its own words.
                if head.status == 200:
                    raise
        if head.status == 404 and document_of(body) is not None:
            # A proxy finds nothing while a service starts. A service that looks for health in vain is asked beside it.
            raise ConfigError(_beside(self.url))
        return self._refused(head, body)

    def _follow(self, call: HttpCall, resumes: bool) -> Talk[None]:
        tries = self._tries(self._patience.total_s)
        heard = Heard(remembers=resumes)
        while True:
            failure = yield from self._try_stream(call, tries, heard)
            if failure is None:
                return
            if heard.num_events and not resumes:
                raise failure.error("")
            yield Pause(tries.pause_after(failure))

    def _try_stream(self, call: HttpCall, tries: Tries, heard: Heard) -> Talk[Failure | None]:
        head = yield Open(call, tries.connect_s, tries.left_s)
        if isinstance(head, Broken):
            return broken(head, self.url)
        if head.status != 200:
            body = yield from self._body(tries)
            return self._refused(head, b"" if isinstance(body, Broken) else body)
        kind = head.headers.get("content-type", "")
        if not kind.startswith(NDJSON):
            yield Close()
            raise BadReply(f"{self.url}: a stream of {NDJSON} was asked for, and {kind or 'something else'} came")
        lines = Lines()
        heard.begin()
        while True:
            part: bytes | Broken = yield Read()
            if isinstance(part, Broken) or not part or tries.left_s <= 0:
                yield Close()
                late = f"no event for {self._patience.total_s:g} s"
                reason = part.reason if isinstance(part, Broken) else late if part else "the connection was closed"
                return cut(reason, self.url)
            for line in lines.push(part):
                event = read_event(line, self.url)
                if isinstance(event, EndEvent):
                    yield Close()
                    failure = self._early_end(event, heard)
                    if failure is None:
                        yield Emit(event)
                    return failure
                if heard.is_new(event):
                    yield Emit(event)
                    tries.restart()

    def _early_end(self, event: EndEvent, heard: Heard) -> Failure | None:
        if event.error is not None:
            return told(event.error, self.url)
        if event.num_samples != heard.num_samples:
            return cut(f"{event.num_samples} samples were announced and {heard.num_samples} came", self.url)
        return None

    def _refused(self, head: Head, body: bytes) -> Failure:
        return refused(head, body, self.url, self._times.time_of_day())

    def _tries(self, total_s: float) -> Tries:
        patience = self._patience
        if total_s != patience.total_s:
            patience = Patience(total_s, min(patience.connect_s, total_s), 1)
        return Tries(patience, self._times.clock, self._times.rng)
