"""Every error cong raises on purpose, in one tree.

    CongError
    ├── ConfigError             a setting is unknown, of the wrong type, out of bounds, or contradicts another
    ├── RequestError            one request cannot be served as asked; the others are unaffected
    │   ├── InvalidRequest      a field is wrong: names the field
    │   ├── PromptTooLong       more tokens than the model or the deployment allows
    │   ├── Overloaded          try again later: says when
    │   ├── Unavailable         this process does not take work now, another one may: says when to try again
    │   ├── DeadlineExceeded    nothing useful was ready in the time that the request had
    │   ├── SlowReader          the answer came faster than the caller read it
    │   ├── Conflict            an idempotency key was used before with another body
    │   ├── NotFound            there is nothing of that name
    │   ├── Unauthenticated     no key was given, or one that is not known
    │   └── Forbidden           the caller is known and may not do this
    ├── ModelError              a network or a tokenizer cannot be used
    │   ├── ArtefactMissing     nothing loadable lies at the path or hub id
    │   ├── UnsafeArtefact      loading it would run its code
    │   ├── TokenizerMismatch   networks of one deployment do not share their tokens
    │   ├── NoChatTemplate      messages were given and the tokenizer has no template
    │   ├── AdapterMismatch     a LoRA adapter was trained on another base
    │   ├── UnsupportedModel    the architecture cannot be served by this engine
    │   └── NotEnoughMemory     it would not fit: gives what is needed and what is there
    ├── StreamError             the sample log cannot do what was asked
    │   ├── StreamCorrupt       stored bytes are not what was written
    │   ├── StreamFenced        another writer has taken over this writer's identity
    │   └── StreamInterrupted   a reader was asked to stop while it waited for more
    ├── CheckpointError         a training checkpoint is missing, torn, or from another recipe
    ├── ServiceError            a service at the other end of a connection did not do what it was asked
    │   ├── Unreachable         no connection, or it broke before the reply was complete
    │   ├── StreamCut           a stream of events ended without saying that it was the end
    │   └── BadReply            what came back is not of this protocol
    ├── EvaluationError         answers and judgements cannot be used: names the prompt
    ├── PipelineError           a stage of a pipeline cannot be completed: names the stage
    ├── KernelUnavailable       compiled code cannot be made or loaded on this machine: says why
    ├── MachineRefusal          a disk is full, a path is of another kind, rights are missing: says what helps
    └── MissingExtra            an optional dependency is not installed: names the extra

A message gives the value, the bound and the remedy. Only `serve/` turns these into status codes.
"""


class CongError(Exception):
    """Root of everything cong raises on purpose."""


class ConfigError(CongError):
    """A setting is unknown, of the wrong type, out of bounds, or contradicts another."""


class RequestError(CongError):
    """One request cannot be served as asked."""


class InvalidRequest(RequestError):
    """A field of a request is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class PromptTooLong(RequestError):
    """A prompt has more tokens than the model or the deployment allows."""


class Overloaded(RequestError):
    """There is no room now."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(RequestError):
    """This process does not take such work now: it starts, drains, is stuck or has failed, wholly or in part."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    """Nothing useful was ready in the time that the request had."""


class SlowReader(RequestError):
    """The answer came faster than the caller read it, and may not be kept for ever."""


class Conflict(RequestError):
    """An idempotency key was used before with another body."""


class NotFound(RequestError):
    """There is nothing of that name."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class Unauthenticated(RequestError):
    """No key was given, or one that is not known."""


class Forbidden(RequestError):
    """The caller is known and may not do this."""


class ModelError(CongError):
    """A network or a tokenizer cannot be used."""


class ArtefactMissing(ModelError):
    """Nothing loadable lies at the path or hub id."""


class UnsafeArtefact(ModelError):
    """Loading the artefact would run code that it brings along."""


class TokenizerMismatch(ModelError):
    """Networks that must share their tokens do not."""


class NoChatTemplate(ModelError):
    """Messages were given, and the tokenizer has no chat template to render them."""


class AdapterMismatch(ModelError):
    """A LoRA adapter was trained on another base."""


class UnsupportedModel(ModelError):
    """The architecture cannot be served by this engine."""


class NotEnoughMemory(ModelError):
    """What was asked for does not fit."""


class StreamError(CongError):
    """The sample log cannot do what was asked."""


class StreamCorrupt(StreamError):
    """Stored bytes are not what was written."""


class StreamFenced(StreamError):
    """Another process has taken over this writer's identity."""


class StreamInterrupted(StreamError):
    """A reader was asked to stop while it waited for more."""


class CheckpointError(CongError):
    """A training checkpoint is missing, torn, or from another recipe."""


class ServiceError(CongError):
    """A service at the other end of a connection did not do what it was asked."""


class Unreachable(ServiceError):
    """There is no connection, or it broke before the reply was complete."""


class StreamCut(ServiceError):
    """A stream of events ended without saying that it was the end; what came is not all."""


class BadReply(ServiceError):
    """What came back is not of this protocol."""


class EvaluationError(CongError):
    """Answers or judgements cannot be used as they are."""


class PipelineError(CongError):
    """A stage of a pipeline cannot be completed."""


class KernelUnavailable(CongError):
    """Compiled code cannot be made or loaded on this machine."""


class MachineRefusal(CongError):
    """A full disk, a wrong place or missing rights: the machine refuses, and a user can mend it."""


class MissingExtra(CongError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        bounds = "" if extra == "vllm" else "-c constraints.txt "
        super().__init__(
            f"this needs the package {package!r}; in the checkout, install it with: pip install {bounds}-e '.[{extra}]'"
        )
        self.extra = extra
