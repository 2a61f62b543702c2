"""Requests as bytes and replies as records. Knows neither connections nor tries."""

import json
import re
import uuid
from collections.abc import Sequence
from typing import TypedDict, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from cong.client.talk import HttpCall
from cong.errors import BadReply, InvalidRequest
from cong.schemas import Prompt, SamplingParameters, ScoreRequest
from cong.wire import (
    IDEMPOTENCY_HEADER,
    NDJSON,
    EndEvent,
    SampleCall,
    SampleEvent,
    ScoreCall,
    StoreLevel,
    StreamEvent,
    StreamForm,
    TokenEvent,
)
from cong.wording import first_cause

Model = TypeVar("Model", bound=BaseModel)

JSON = "application/json"

Prompts = str | Prompt | Sequence[str | Prompt]

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_EVENT: TypeAdapter[TokenEvent | SampleEvent | EndEvent] = TypeAdapter(StreamEvent)


class SampleOptions(TypedDict, total=False):
    """What may be said about samples beside their prompts; `cong.wire.SampleCall` says what each means.

    Fields of `parameters` that were not given to it are the deployment's own.
    """

    num_samples: int
    parameters: SamplingParameters | None
    method: str | None
    method_parameters: dict[str, float]
    store: StoreLevel
    deadline_s: float | None
    idempotency_key: str | None
    """The same key in a later call stands for the same request; None = one that is made for this call."""


class CutDocument(Exception):
    """A document that ends too early, for whoever asks again; never leaves the client."""


def sample_call(prompts: Prompts, options: SampleOptions, form: StreamForm) -> HttpCall:
    """`POST /sample` under one idempotency key."""
    fields = dict(options)
    key = fields.pop("idempotency_key", None) or uuid.uuid4().hex
    if not isinstance(key, str) or _KEY.fullmatch(key) is None:
        raise InvalidRequest("idempotency_key", f"is {key!r}; give 1 to 255 visible ASCII characters")
    for name in fields:
        if name in ("prompts", "stream"):
            raise InvalidRequest(name, "is no option; prompts come first, and the method says how samples are sent")
        if name in SamplingParameters.model_fields:
            raise InvalidRequest(name, f"is a sampling parameter; give it by parameters=SamplingParameters({name}=...)")
    listed = [prompts] if isinstance(prompts, str | Prompt) else list(prompts)
    body = _body(SampleCall, {**fields, "prompts": listed, "stream": form})
    accept = JSON if form == "none" else NDJSON
    return HttpCall("POST", "/sample", body, {"Content-Type": JSON, "Accept": accept, IDEMPOTENCY_HEADER: key})


def score_call(items: ScoreRequest | Sequence[ScoreRequest], deadline_s: float | None) -> HttpCall:
    """`POST /score`; it changes nothing, so it needs no key."""
    listed = [items] if isinstance(items, ScoreRequest) else list(items)
    body = _body(ScoreCall, {"items": listed, "deadline_s": deadline_s})
    return HttpCall("POST", "/score", body, {"Content-Type": JSON, "Accept": JSON})


def get(path: str) -> HttpCall:
    """A request without a body."""
    return HttpCall("GET", path, headers={"Accept": JSON})


def _body(model: type[BaseModel], fields: dict[str, object]) -> bytes:
    try:
        return model.model_validate(fields).model_dump_json(exclude_unset=True).encode()
    except ValidationError as error:
        raise InvalidRequest(*first_cause(error.errors(), "request")) from error
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise InvalidRequest("request", f"holds text that is no Unicode: {error}") from error


def read_document(model: type[Model], body: bytes, url: str) -> Model:
    """A reply's body as a record."""
    try:
        json.loads(body)
    except ValueError as error:
        raise CutDocument(f"the reply is no whole JSON document: {error}") from error
    except RecursionError as error:
        raise BadReply(f"{url}: the reply is nested deeper than any {model.__name__}; is it cong?") from error
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise BadReply(
            f"{url}: the reply is no {model.__name__} ({_first(error)}); is it cong, and of this version?"
        ) from error


def read_event(line: bytes, url: str) -> TokenEvent | SampleEvent | EndEvent:
    """A line of a stream as an event."""
    try:
        return _EVENT.validate_json(line)
    except ValidationError as error:
        raise BadReply(f"{url}: a line of the stream is no event ({_first(error)})") from error


def _first(error: ValidationError) -> str:
    return ": ".join(first_cause(error.errors(), "document"))
