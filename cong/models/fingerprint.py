"""Names for contents: the same network or tokenizer has the same fingerprint on every machine and in every layout.

Every byte of every tensor counts, none is sampled and nothing is cached: alignment may change few weights, so a sampled
fingerprint could miss it, and a cache keyed by size and time could answer for a file that was replaced. Paths, times,
shard boundaries, key order and settings without influence on the numbers do not count. A wrong answer takes a collision
of SHA-256 cut to 160 bits.
"""

import hashlib
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cong.errors import ArtefactMissing
from cong.models.artefact import read_json, weight_files
from cong.models.weights import StoredTensor, read_tensors
from cong.schemas import content_key

BLOCK_BYTES = 8 * 2**20
"""Part of the fingerprint's definition: tensors are hashed in blocks so that one large tensor occupies every core."""

_INERT_CONFIG = re.compile(
    r"_?name_or_path|transformers_version|(torch_)?dtype|architectures|use_cache|_?(attn|experts)_implementation\w*"
    r"|(bos|eos|pad|sep|unk|decoder_start)_token_id|tokenizer_class|initializer_range|\w*dropout|pretraining_tp"
    r"|output_(attentions|hidden_states)|return_dict|torchscript|id2label|label2id|problem_type|finetuning_task"
    r"|task_specific_params|prefix|gradient_checkpointing"
)
"""Keys of config.json that leave the logits of a loaded network as they are."""
_ADAPTER_SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_TOKENIZER_SWITCHES = ("add_bos_token", "add_eos_token", "add_prefix_space")
_VOCABULARY_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
)


def fingerprint_weights(folder: Path) -> str:
    """Fingerprint of a network: its tensors, and the settings of config.json that act on its logits."""
    config = _without_inert(read_json(folder / "config.json"))
    return "w1-" + content_key([config, _tensor_digests(read_tensors(weight_files(folder)))])


def fingerprint_adapter(folder: Path) -> str:
    """Fingerprint of a LoRA adapter: its tensors and its scaling; which base it names does not count."""
    config = read_json(folder / "adapter_config.json")
    settings = {name: config.get(name) for name in _ADAPTER_SETTINGS}
    return "a1-" + content_key([settings, _tensor_digests(read_tensors(weight_files(folder, "adapter_model")))])


def fingerprint_adapted(base_fingerprint: str, adapter_fingerprint: str) -> str:
    """Fingerprint of a network that is a base with an adapter on top."""
    return "w1-" + content_key([base_fingerprint, adapter_fingerprint])


def fingerprint_tokenizer(folder: Path, chat_template: str | None = None) -> str:
    """Fingerprint of what turns text and messages into ids and back; `chat_template` replaces the folder's own."""
    config = read_json(folder / "tokenizer_config.json")
    special = {**read_json(folder / "special_tokens_map.json"), **config}
    settings: dict[str, Any] = {name: _token_text(special.get(name)) for name in _SPECIAL_TOKENS}
    settings |= {name: config[name] for name in _TOKENIZER_SWITCHES if name in config}
    told = _told_tokens(special, read_json(folder / "tokenizer.json"))
    settings |= {"tokens": told} if told else {}
    template = chat_template if chat_template is not None else _stored_template(folder, config)
    return "t1-" + content_key([_vocabulary(folder), settings, template])


def _without_inert(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _without_inert(value) for key, value in config.items() if not _INERT_CONFIG.fullmatch(key)}
    if isinstance(config, list):
        return [_without_inert(value) for value in config]
    # One library writes 10000 where another writes 10000.0.
    return int(config) if isinstance(config, float) and config.is_integer() else config


def _tensor_digests(tensors: Sequence[StoredTensor]) -> list[list[Any]]:
    """Name, type, shape and digest of each tensor; the digest is that of its blocks' digests."""
    files = {path: os.open(path, os.O_RDONLY) for path in {tensor.path for tensor in tensors}}
    buffers = threading.local()

    def block_digest(block: tuple[Path, int, int]) -> bytes:
        path, start, num_bytes = block
        if not hasattr(buffers, "block"):
            buffers.block = memoryview(bytearray(BLOCK_BYTES))
        view: memoryview = buffers.block[:num_bytes]
        num_read = 0
        while num_read < num_bytes:
            num_new = os.preadv(files[path], [view[num_read:]], start + num_read)
            if num_new == 0:
                raise ArtefactMissing(f"{path} was cut short while it was read; fetch or save it again")
            num_read += num_new
        return hashlib.sha256(view).digest()

    blocks_of = [
        [
            (tensor.path, start, min(BLOCK_BYTES, tensor.end - start))
            for start in range(tensor.start, tensor.end, BLOCK_BYTES)
        ]
        for tensor in tensors
    ]
    try:
        # Reading and hashing both release the interpreter lock.
        with ThreadPoolExecutor(max_workers=min(32, len(os.sched_getaffinity(0)))) as pool:
            digests = pool.map(block_digest, [block for blocks in blocks_of for block in blocks])
            return [
                [
                    tensor.name,
                    tensor.dtype,
                    list(tensor.shape),
                    hashlib.sha256(b"".join(next(digests) for _ in blocks)).hexdigest(),
                ]
                for tensor, blocks in zip(tensors, blocks_of, strict=True)
            ]
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def _vocabulary(folder: Path) -> Any:
    """The tokenizer's tables and rules, without the state that its last user left in them."""
    tokenizer = read_json(folder / "tokenizer.json")
    if not tokenizer:
        paths = [folder / name for name in _VOCABULARY_FILES if (folder / name).exists()]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    rules = {key: value for key, value in tokenizer.items() if key not in ("version", "truncation", "padding")}
    model = rules.get("model")
    if isinstance(model, dict) and isinstance(model.get("merges"), list):
        # Older files join the two halves of a merge by a space, newer ones list them.
        merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        rules["model"] = {**model, "merges": merges}
    return rules


def _told_tokens(config: dict[str, Any], tokenizer: dict[str, Any]) -> list[list[Any]]:
    """Tokens that the settings add to those of the tables, or give another id or use: text, id, whether special."""
    added = tokenizer.get("added_tokens") or ()
    known = [[token.get("content"), token.get("id"), bool(token.get("special"))] for token in added]
    numbered = (config.get("added_tokens_decoder") or {}).items()
    told = [[_token_text(token), int(number), bool(token.get("special"))] for number, token in numbered]
    already_special = {text for text, _, is_special in known if is_special}
    special: list[Any] = [config.get(name) for name in ("cls_token", "sep_token", "mask_token")]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(name) or ()
        special += more.values() if isinstance(more, dict) else more
    texts = [text for text in map(_token_text, special) if text is not None and text not in already_special]
    # Those without an id get the next ones in their order.
    return [token for token in told if token not in known] + [[text, None, True] for text in texts]


def _token_text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return None if text is None else str(text)


def _stored_template(folder: Path, config: dict[str, Any]) -> Any:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    return read_json(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
