"""Every error cong raises on purpose, in one tree.

    CongError
    ├── ConfigError             a setting is unknown, of the wrong type, out of bounds, or contradicts another
    ├── RequestError            one request cannot be served as asked; the others are unaffected
    │   ├── InvalidRequest      a field is wrong: names the field
    │   ├── PromptTooLong       more tokens than the model or the deployment allows
    │   └── Overloaded          try again later: says when
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
    │   └── StreamFenced        another writer has taken over this writer's identity
    ├── CheckpointError         a training checkpoint is missing, torn, or from another recipe
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


class CheckpointError(CongError):
    """A training checkpoint is missing, torn, or from another recipe."""


class MissingExtra(CongError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"this needs the package {package!r}; install it with: pip install 'cong[{extra}]'")
        self.extra = extra
