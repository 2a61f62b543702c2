"""From a run's configuration to its method, its source of examples, and what frozen networks say of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from cong.config import RunConfig
from cong.config.models import NetworkConfig
from cong.config.stream import ReadSettings
from cong.config.train import DataSettings, ObjectiveSettings
from cong.errors import ConfigError, CongError
from cong.models import Network, Tokenizer
from cong.objectives import FrozenNetwork, Objective, objective
from cong.stream import Store, StreamReader, open_store
from cong.stream.identity import read_identity
from cong.train.backend import Backend
from cong.train.data.batch import Example, MicroBatch
from cong.train.data.feed import Frozen
from cong.train.data.pair_files import read_pairs
from cong.train.data.pairs import Pairs, join_pairs
from cong.train.data.reading import FINGERPRINT, Reading
from cong.train.data.source import ExampleList, Source
from cong.train.data.stream_source import StreamSource
from cong.train.forward import response_logits
from cong.train.scores import FrozenScores, Predict, ScoreCache
from cong.train.trainee import fingerprint_of, load_by, network_settings, pack_attention
from cong.train.validation import is_held_out

_SCANNED_AT_ONCE = 1024
_CONTENT = ("stream", "content")
"""What of a source's identity says where its examples come from, and not in which order."""


def method_of(settings: ObjectiveSettings) -> Objective:
    """The training method that is named; one that no record has enough for is refused."""
    method = objective(settings.name, **settings.parameters)
    if method.needs.distribution:
        raise ConfigError(
            f"objective {method.name!r} needs the weak model's whole distribution at every token, which no record "
            "holds; choose one of sft, dpo, cw_dpo, wspo, aux_conf, adapt_conf"
        )
    return method


def open_source(
    config: RunConfig,
    data: DataSettings,
    method: Objective,
    tokenizer: Tokenizer,
    wants_stop: Callable[[], bool] = lambda: False,
) -> Source:
    """The examples that a run is trained on; `wants_stop` is asked while they are waited for."""
    train, needs = config.train, method.needs
    require_kind(data, method)
    if data.kind != "stream":
        pairs = pairs_of(config, data, tokenizer)
        seed = train.seed if data.is_shuffled else None
        return ExampleList(pairs.examples, num_epochs=train.num_epochs, seed=seed, counts=pairs.counts)
    store = _store(config, data.path)
    if config.stream.read.follow is None:
        _require_there(store)
    return StreamSource(
        store,
        config.stream.read,
        _reading(config, tokenizer, store),
        num_epochs=train.num_epochs,
        frozen=tuple(name for name in needs.frozen if name != "reference"),
        cache_dir=config.stream.cache_dir,
        wants_stop=wants_stop,
    )


def evaluation_examples(config: RunConfig, method: Objective, tokenizer: Tokenizer, source: Source) -> list[Example]:
    """The first examples that are kept for evaluation; none where nothing asks for them."""
    wanted, train = config.train.evaluation, config.train
    found: list[Example] = []
    if wanted.held_out_share:
        if source.is_growing:
            raise ConfigError(
                "train.evaluation.held_out_share needs a stream that is finished, and stream.read.follow is set; give "
                "train.evaluation.data instead"
            )
        for examples in source.scan(_SCANNED_AT_ONCE):
            found += [example for example in examples if is_held_out(example.prompt_id, wanted.held_out_share)]
            if len(found) >= wanted.max_examples:
                break
    elif wanted.data is not None:
        still = config.stream.model_copy(update={"read": ReadSettings(filter=config.stream.read.filter)})
        single = train.model_copy(update={"num_epochs": 1})
        own = config.model_copy(update={"stream": still, "train": single})
        others = open_source(own, wanted.data, method, tokenizer)
        _require_apart(others, source)
        for examples in others.scan(wanted.max_examples):
            found += examples
            break
    return found[: wanted.max_examples]


def _require_apart(judged: Source, trained: Source) -> None:
    """Refuse to judge on what is trained on, as a location that is left out would."""
    if any(judged.identity.get(name) == found for name, found in trained.identity.items() if name in _CONTENT):
        raise ConfigError(
            "train.evaluation.data is what is trained on, so it would not show what is learned by heart alone; give "
            "other examples, or train.evaluation.held_out_share in its place"
        )


def require_kind(data: DataSettings, method: Objective) -> None:
    """Refuse pairs for a method of single responses, and the other way round."""
    if (data.kind != "stream") != (method.needs.unit == "pairs"):
        is_of_pairs = method.needs.unit == "pairs"
        raise ConfigError(
            f"objective {method.name!r} is trained on {'pairs' if is_of_pairs else 'single responses'} and the kind of "
            f"its data is {data.kind!r}; set it to {'pairs or joined' if is_of_pairs else 'stream'}"
        )


def pairs_of(config: RunConfig, data: DataSettings, tokenizer: Tokenizer) -> Pairs:
    """Preferences from a file or joined from streams."""
    if data.kind == "pairs":
        return read_pairs(Path(data.path), tokenizer)
    chosen, rejected = ((_store(config, side.location), side.filter) for side in (data.chosen, data.rejected))
    for store, _ in (chosen, rejected):
        _require_there(store)
    return join_pairs(chosen, rejected, Reading(tokenizer), cache_dir=config.stream.cache_dir)


def _store(config: RunConfig, location: str) -> Store:
    stream = config.stream
    where = location or stream.location or str(config.output_dir / "stream")
    return open_store(where, stream.storage_options, is_shared=stream.is_shared)


def _reading(config: RunConfig, tokenizer: Tokenizer, store: Store) -> Reading:
    """What is there already is looked at before anything begins."""
    reading = Reading(tokenizer)
    if read_identity(store) is not None:
        wanted = ReadSettings(filter=config.stream.read.filter)
        reader = StreamReader(store, wanted, cache_dir=config.stream.cache_dir)
        if (draw := reader.draw(_SCANNED_AT_ONCE)) is not None:
            reading.require(reader, draw, reader.fetch(draw, (FINGERPRINT,)))
    return reading


def _require_there(store: Store) -> None:
    if read_identity(store) is None:
        raise ConfigError(
            f"there is no stream at {store.location}; sample into one first, or set stream.read.follow to wait for it"
        )


class FrozenNetworks:
    """Log-probs of the networks that an objective compares with, each asked only where nothing is known yet."""

    def __init__(self, config: RunConfig, backend: Backend, fingerprint: str, *, is_growing: bool) -> None:
        """`fingerprint` is that of the network before training, which is the reference."""
        self._config = config
        self._backend = backend
        self._fingerprint = fingerprint
        self._is_growing = is_growing
        self._is_trained = False
        self._fingerprints: dict[str, str] = {}
        self._made: dict[FrozenNetwork, FrozenScores] = {}

    def of(self, names: Sequence[FrozenNetwork]) -> Frozen:
        """A function that gives examples the log-probs of these networks; all ranks call it with the same ones."""

        def attach(examples: Sequence[Example]) -> list[Example]:
            found = list(examples)
            for name in names:
                if any(name not in example.frozen for example in found):
                    found = self._scores(name)(found)
            return found

        return attach

    @property
    def num_computed(self) -> int:
        """Responses that had to be computed."""
        return sum(scores.num_computed for scores in self._made.values())

    def training_begins(self) -> None:
        """From here on the network in training is no longer its own reference."""
        self._is_trained = True

    def _predict_untrained(self, batch: MicroBatch) -> torch.Tensor:
        if self._is_trained:
            raise CongError("an example without a reference came up after training began; its source has changed")
        return self._backend.predict(batch)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the networks that had something to say."""
        return dict(self._fingerprints)

    def _scores(self, name: FrozenNetwork) -> FrozenScores:
        if name not in self._made:
            train, models = self._config.train, self._config.models
            if name == "reference":
                fingerprint, numerics = self._fingerprint, f"{train.backend}-{train.precision}"
                predict = self._later_reference() if self._is_growing else self._predict_untrained
            else:
                settings = self._weak(name)
                fingerprint, numerics = fingerprint_of(settings, models), models.dtype
                predict = self._loaded(lambda: load_by(settings, models, dtype=models.dtype))
            self._fingerprints[name] = fingerprint
            cache = ScoreCache(self._config.cache_dir / "scores" / f"{fingerprint}-{numerics}")
            self._made[name] = FrozenScores(name, cache, predict, self._backend, train.batches)
        return self._made[name]

    def _later_reference(self) -> Predict:
        """While a stream grows the reference is asked during training: it has to be a network of its own."""
        train, models = self._config.train, self._config.models
        return self._loaded(lambda: load_by(network_settings(train, models), models, dtype=train.precision))

    def _weak(self, name: FrozenNetwork) -> NetworkConfig:
        models = self._config.models
        settings = models.aligned if name == "aligned" else models.base
        if not settings.source:
            raise ConfigError(
                f"objective {self._config.train.objective.name!r} needs log-probs of the {name!r} network, which some "
                f"examples do not bring along; give models.{name}.source"
            )
        return settings

    def _loaded(self, load: Callable[[], Network]) -> Predict:
        """A network that is loaded when it is first asked."""
        device = self._backend.device
        model: nn.Module | None = None

        def predict(batch: MicroBatch) -> torch.Tensor:
            nonlocal model
            if model is None:
                network = load()
                if batch.layout is not None:
                    pack_attention(network)
                model = network.model.to(device)
            with torch.no_grad():
                return response_logits(model, batch)

        return predict
