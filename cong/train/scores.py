"""Log-probs of frozen networks: computed once for each response, kept on disk, read again by every later run.

An entry is found by the tokens of prompt and response, so it does not matter where an example comes from. A file is
named by the digest of its bytes: a damaged one is announced and computed again. Files appear whole or not at all.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cong.config.train import BatchSettings
from cong.files import write_file
from cong.objectives import FrozenNetwork, Needs, policy_scores
from cong.train.backend import Backend
from cong.train.data.batch import Example, LogProbs, MicroBatch, TokenIds, make_batch
from cong.train.data.feed import plan_passes

logger = logging.getLogger(__name__)

Predict = Callable[[MicroBatch], Tensor]
"""Logits [N, V] of a frozen network for a batch on the backend's device."""


def response_digest(prompt_ids: TokenIds, response: TokenIds) -> bytes:
    """What an entry is found by."""
    digest = hashlib.sha256(len(prompt_ids).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(prompt_ids, dtype="<i4").tobytes())
    digest.update(np.ascontiguousarray(response, dtype="<i4").tobytes())
    return digest.digest()[:20]


class ScoreCache:
    """What one network said of responses; the folder is named by the network and by how it was computed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[bytes, LogProbs] = {}
        self._names: set[str] = set()
        self.refresh()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._found

    def __getitem__(self, digest: bytes) -> LogProbs:
        return self._found[digest]

    def refresh(self) -> None:
        """Take in what other processes have stored."""
        paths = sorted(self.folder.glob("*.scores")) if self.folder.is_dir() else []
        for path in paths:
            if path.name not in self._names:
                self._names.add(path.name)
                self._read(path)

    def store(self, entries: Mapping[bytes, LogProbs]) -> None:
        """Keep these, on disk too."""
        digests, values = b"".join(entries), np.concatenate([*entries.values()]).astype("<f4")
        lengths = np.array([len(each) for each in entries.values()], dtype="<i8")
        buffer = io.BytesIO()
        buffer.write(json.dumps({"num_responses": len(entries), "num_tokens": len(values)}).encode() + b"\n")
        buffer.write(digests + lengths.tobytes() + values.tobytes())
        content = buffer.getvalue()
        name = f"{hashlib.sha256(content).hexdigest()[:40]}.scores"
        write_file(self.folder / name, content)
        self._names.add(name)
        self._found.update(entries)

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:40] != path.stem:
            logger.warning("%s is not what was written; its scores are computed again", path)
            return
        head, _, body = content.partition(b"\n")
        num_responses = int(json.loads(head)["num_responses"])
        lengths = np.frombuffer(body, "<i8", num_responses, offset=20 * num_responses)
        values = np.frombuffer(body, "<f4", offset=28 * num_responses)
        stops = np.cumsum(lengths)
        for row, (start, stop) in enumerate(zip(stops - lengths, stops, strict=True)):
            self._found[body[20 * row : 20 * row + 20]] = values[start:stop]


class FrozenScores:
    """Gives examples the log-probs of one frozen network, asking the network only for what is not known yet."""

    def __init__(
        self,
        network: FrozenNetwork,
        cache: ScoreCache,
        predict: Predict,
        backend: Backend,
        settings: BatchSettings,
    ) -> None:
        self._network = network
        self._cache = cache
        self._predict = predict
        self._backend = backend
        self._settings = settings
        self.num_computed = 0
        """Responses that the network was asked for, by this process and the others."""

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with their log-probs; all ranks call with the same ones."""
        self._fill(example for example in examples if self._network not in example.frozen)
        return [self._with_scores(example) for example in examples]

    def _with_scores(self, example: Example) -> Example:
        if self._network in example.frozen:
            return example
        sides = tuple(self._cache[response_digest(example.prompt_ids, side)] for side in example.responses)
        return replace(example, frozen={**example.frozen, self._network: sides})

    def _fill(self, examples: Iterable[Example]) -> None:
        wanted = {
            response_digest(example.prompt_ids, side): replace(example, responses=(side,), frozen={})
            for example in examples
            for side in example.responses
        }
        if not wanted:
            return
        # Ranks on other machines may know more or less: what one of them lacks, all compute.
        is_missing = torch.tensor([digest not in self._cache for digest in wanted], dtype=torch.float32)
        num_missing = self._backend.total(is_missing.to(self._backend.device)).tolist()
        missing = [digest for digest, number in zip(wanted, num_missing, strict=True) if number]
        if not missing:
            return
        entries = self._compute(missing, [wanted[digest] for digest in missing])
        self._cache.store(entries)
        self.num_computed += len(entries)

    def _compute(self, digests: Sequence[bytes], examples: Sequence[Example]) -> dict[bytes, LogProbs]:
        backend = self._backend
        stops = np.cumsum([len(example.responses[0]) for example in examples])
        everything_N = torch.zeros(int(stops[-1]), device=backend.device)
        plans = plan_passes(
            [example.num_tokens for example in examples],
            backend.world_size,
            self._settings.max_tokens_per_micro_batch,
        )
        for places in plans[backend.rank]:
            batch = make_batch([examples[place] for place in places], is_packed=self._settings.is_packed)
            batch = batch.to(backend.device)
            with torch.no_grad():
                scores_N = policy_scores(self._predict(batch), batch.responses, Needs("tokens")).logprobs_N
            parts = torch.split(scores_N, list(batch.responses.lengths)) if places else ()
            for (number, _), part in zip(batch.origins, parts, strict=True):
                place = places[number]
                everything_N[stops[place] - len(part) : stops[place]] = part.float()
        # Each rank has filled in its own part, and zeros elsewhere.
        values = backend.total(everything_N).cpu().numpy().astype("<f4")
        return dict(zip(digests, np.split(values, stops[:-1]), strict=True))
