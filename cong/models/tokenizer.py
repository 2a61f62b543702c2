"""Text to ids and back, with special tokens put in front exactly once.

Knows nothing of networks: whether one fits is decided in `network_set`.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers

from cong.errors import ArtefactMissing, UnsupportedModel
from cong.models.artefact import Artefact, open_artefact
from cong.models.fingerprint import fingerprint_tokenizer
from cong.models.silence import silence

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer and the facts about it that others rely on."""

    name: str
    fingerprint: str
    token_to_id: Mapping[str, int] = field(repr=False)
    """Every token, the added ones included."""
    num_tokens: int
    """One more than the highest id that means something; logits beyond it are padding."""
    prefix_ids: tuple[int, ...]
    """What the tokenizer puts in front of every text: the beginning-of-sequence token, or nothing."""
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    special_ids: frozenset[int] = field(repr=False)
    """Control tokens: not shown in text unless asked for."""
    chat_template: str | None = field(repr=False)
    """Jinja source that renders messages; None = only plain text can be encoded."""
    backend: Any = field(repr=False)
    """The transformers tokenizer itself."""


def load_tokenizer(
    source: str,
    *,
    revision: str | None = None,
    root: Path | None = None,
    cache_dir: Path | None = None,
    chat_template: str | None = None,
) -> Tokenizer:
    """Load the tokenizer of a folder or hub id; `chat_template` replaces the template it brings."""
    artefact = open_artefact(source, revision=revision, root=root, cache_dir=cache_dir, with_weights=False)
    return tokenizer_of(artefact, chat_template=chat_template)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's own files."""
    return any((folder / name).exists() for name in _TOKENIZER_FILES)


def tokenizer_of(artefact: Artefact, *, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer of an artefact that has been opened."""
    folder = artefact.folder
    if not has_tokenizer(folder):
        raise ArtefactMissing(
            f"{folder} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)}); save the tokenizer beside the "
            "weights"
        )
    try:
        with silence():
            backend: Any = transformers.AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # what is wrong with tokenizer.json arrives as a bare Exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ArtefactMissing(
            f"the tokenizer in {folder} cannot be loaded ({reason}); save it again with a current transformers"
        ) from error
    if chat_template is not None:
        backend.chat_template = chat_template
    token_to_id = dict(backend.get_vocab())
    return Tokenizer(
        name=artefact.name,
        fingerprint=fingerprint_tokenizer(folder, chat_template),
        token_to_id=token_to_id,
        num_tokens=max(token_to_id.values()) + 1,
        prefix_ids=_prefix_ids(backend),
        bos_id=backend.bos_token_id,
        eos_id=backend.eos_token_id,
        pad_id=backend.pad_token_id,
        special_ids=frozenset(token_id for token_id, token in backend.added_tokens_decoder.items() if token.special),
        chat_template=_default_template(backend.chat_template),
        backend=backend,
    )


def _default_template(template: str | dict[str, str] | None) -> str | None:
    return template.get("default") if isinstance(template, dict) else template


def _plain_ids(backend: Any, text: str, add_special_tokens: bool = False) -> list[int]:
    # verbose=False: lengths are checked against the network's context by whoever admits the request.
    ids = backend(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return [int(token_id) for token_id in ids]


def _prefix_ids(backend: Any) -> tuple[int, ...]:
    """What stands before a text once special tokens are added; what stands after it would end a prompt."""
    bare, dressed = _plain_ids(backend, "a"), _plain_ids(backend, "a", add_special_tokens=True)
    for start in range(len(dressed) - len(bare) + 1):
        if dressed[start : start + len(bare)] == bare:
            return tuple(dressed[:start])
    raise UnsupportedModel("the tokenizer changes a text when it adds special tokens, so a prompt cannot be completed")


def encode_prompt(tokenizer: Tokenizer, text: str, *, as_published: bool = False) -> list[int]:
    """Ids of a text to be continued, with the tokenizer's prefix in front exactly once.

    A text that already begins with the prefix, as a rendered chat may, does not get a second one. `as_published` puts
    it in front regardless, as the published code does (two beginnings of sequence on Llama prompts). An
    end-of-sequence token that the tokenizer would append is left out in both cases: a prompt goes on.
    """
    ids = _plain_ids(tokenizer.backend, text)
    prefix = list(tokenizer.prefix_ids)
    has_prefix = bool(prefix) and ids[: len(prefix)] == prefix
    return ids if has_prefix and not as_published else prefix + ids


def encode_completion(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that continues a prompt: nothing is added before or after it."""
    return _plain_ids(tokenizer.backend, text)


def detokenize(tokenizer: Tokenizer, token_ids: Sequence[int], *, with_special_tokens: bool = False) -> str:
    """The text of some ids, exactly as the tokens spell it."""
    text = tokenizer.backend.decode(
        list(token_ids), skip_special_tokens=not with_special_tokens, clean_up_tokenization_spaces=False
    )
    return str(text)


def token_texts(tokenizer: Tokenizer, token_ids: Iterable[int]) -> list[str]:
    """Each token by itself, special ones included."""
    return [detokenize(tokenizer, [token_id], with_special_tokens=True) for token_id in token_ids]


def end_ids(*values: Any) -> frozenset[int]:
    """End-of-sequence ids from fields that hold one id, several, or none."""
    ids: set[int] = set()
    for value in values:
        entries: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
        ids.update(int(entry) for entry in entries if entry is not None)
    return frozenset(ids)
