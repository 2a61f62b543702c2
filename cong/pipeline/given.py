"""What a pipeline is given, each thing named by the content it has now: networks, prompts, files.

Loads no weights; reads every byte of them once for their fingerprint.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cong.config import RunConfig
from cong.config.models import ModelsConfig, NetworkConfig
from cong.errors import ConfigError
from cong.evaluation.answers import held_out_prompts
from cong.models import fingerprint_adapter, fingerprint_tokenizer, fingerprint_weights, open_artefact
from cong.pipeline.book import (
    CEILING,
    GOLD_ANSWERS,
    HELD_OUT,
    PREFERENCES,
    PROMPTS,
    STRONG_BASE,
    WEAK_ALIGNED,
    WEAK_BASE,
)
from cong.pipeline.stage import Product
from cong.prompts import BadRow, prompts_of
from cong.schemas import Prompt, content_key


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order of their source, each once, and what of it is none."""

    prompts: tuple[Prompt, ...]
    bad_rows: tuple[BadRow, ...]
    num_repeated: int
    """Prompts with the content of one before them; they would get the same samples."""

    @cached_property
    def fingerprint(self) -> str:
        """Ids, contents and order."""
        return "p1-" + content_key([prompt.model_dump(mode="json") for prompt in self.prompts])


def read_prompt_set(config: RunConfig) -> PromptSet:
    """The prompts that `sampling_job.prompts` names."""
    settings = config.sampling_job.prompts
    if not settings.source:
        raise ConfigError("pipeline.prompts.source is empty; name a file, a folder, a URL or a hub id")
    source = prompts_of(settings)
    contents: set[str] = set()
    ids: set[str] = set()
    prompts, bad_rows, num_repeated = [], [], 0
    for item in source:
        if isinstance(item, BadRow):
            bad_rows.append(item)
            continue
        content = content_key(item.model_dump(mode="json", exclude={"prompt_id"}))
        if content in contents:
            num_repeated += 1
            continue
        if item.prompt_id in ids:
            raise ConfigError(
                f"{settings.source}: two prompts have the id {item.prompt_id!r}; pairs are joined by it, so give each "
                "its own"
            )
        contents.add(content)
        ids.add(item.prompt_id)
        prompts.append(item)
    if not prompts:
        raise ConfigError(f"{settings.source} holds no prompts")
    return PromptSet(tuple(prompts), tuple(bad_rows), num_repeated)


def chat_template_of(models: ModelsConfig) -> str | None:
    """The text of the template that replaces those of the tokenizers."""
    return None if models.chat_template is None else models.chat_template.read_text(encoding="utf-8")


def network_product(settings: NetworkConfig, models: ModelsConfig, name: str) -> Product:
    """A network under the fingerprint of its weights, its adapter and its tokenizer."""
    is_folder = Path(settings.source).expanduser().exists()
    if not is_folder and settings.revision is None:
        raise ConfigError(
            f"{name} is {settings.source!r}: there is no such folder, and a hub id may stand for another network "
            "between two stages; give a folder, or a revision"
        )
    folder = open_artefact(settings.source, revision=settings.revision).folder
    parts = [fingerprint_weights(folder)]
    if settings.adapter is not None:
        parts.append(fingerprint_adapter(open_artefact(settings.adapter).folder))
    tokenizer = fingerprint_tokenizer(folder, chat_template_of(models))
    fingerprint = "n1-" + content_key([*parts, tokenizer])
    return Product(fingerprint, settings.source, settings, {"weights": parts[0], "tokenizer": tokenizer})


def file_fingerprint(path: Path, setting: str) -> str:
    """Digest of a file, or of all files in a folder, by name."""
    if not path.exists():
        raise ConfigError(f"{setting} is {path}, and nothing is there; check the path")
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    digests = []
    for each in files:
        with each.open("rb") as file:
            name = "" if each == path else each.relative_to(path).as_posix()
            digests.append([name, hashlib.file_digest(file, "sha256").hexdigest()])
    return "f1-" + content_key(digests)


def candidate_product(name: str) -> str:
    """What a candidate that the configuration names is called among the products."""
    return f"candidate {name}"


class Given:
    """The products that a configuration names; each is looked at when it is first asked for."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._found: dict[str, Product] = {}
        models, pipeline, evaluation = config.models, config.pipeline, config.evaluation
        if models.root is not None:
            raise ConfigError("models.root is for services, and a pipeline's networks lie in output_dir; leave it out")
        networks = {
            WEAK_BASE: (models.base, "models.base.source"),
            WEAK_ALIGNED: (models.aligned, "models.aligned.source"),
            STRONG_BASE: (models.strong, "models.strong.source"),
            CEILING: (pipeline.ceiling, "pipeline.ceiling.source"),
        }
        self.networks = {name: settings for name, (settings, _) in networks.items() if settings.source}
        """As the configuration names them, looked at or not."""
        self._makers: dict[str, Callable[[], Product]] = {
            name: self._network(self.networks[name], networks[name][1]) for name in self.networks
        }
        files: Mapping[str, tuple[str | Path | None, str]] = {
            PREFERENCES: (pipeline.preferences, "pipeline.preferences"),
            GOLD_ANSWERS: (pipeline.gold_answers, "pipeline.gold_answers"),
        }
        self._makers |= {name: self._file(Path(path), setting) for name, (path, setting) in files.items() if path}
        if evaluation.prompts is not None:
            self._makers[HELD_OUT] = self._held_out(evaluation.prompts)
        if pipeline.prompts.source:
            self._makers[PROMPTS] = self._prompts
        for name, candidate in evaluation.candidates.items():
            setting = f"evaluation.candidates.{name}"
            if candidate.answers is not None:
                self._makers[candidate_product(name)] = self._file(candidate.answers, setting)
            else:
                plain = NetworkConfig.model_validate(candidate.model_dump(exclude={"answers"}))
                self.networks[candidate_product(name)] = plain
                self._makers[candidate_product(name)] = self._network(plain, setting)

    @property
    def names(self) -> frozenset[str]:
        """Of everything that is given."""
        return frozenset(self._makers)

    def __getitem__(self, name: str) -> Product:
        if name not in self._found:
            self._found[name] = self._makers[name]()
        return self._found[name]

    @cached_property
    def prompt_set(self) -> PromptSet:
        """The prompts to sample."""
        return read_prompt_set(with_prompts(self._config))

    @property
    def is_strong_of_other_tokens(self) -> bool:
        """Whether the strong model's tokenizer is not that of the weak base."""
        if not {WEAK_BASE, STRONG_BASE} <= self.names:
            return False
        return self[WEAK_BASE].facts["tokenizer"] != self[STRONG_BASE].facts["tokenizer"]

    def _network(self, settings: NetworkConfig, setting: str) -> Callable[[], Product]:
        return lambda: network_product(settings, self._config.models, setting)

    def _file(self, path: Path, setting: str) -> Callable[[], Product]:
        return lambda: Product(file_fingerprint(path, setting), str(path))

    def _held_out(self, path: Path) -> Callable[[], Product]:
        named = self._file(path, "evaluation.prompts")

        def make() -> Product:
            product = named()
            # They are needed last: what is wrong with them is told before every training, and not behind it.
            held_out_prompts(self._config.evaluation)
            return product

        return make

    def _prompts(self) -> Product:
        found = self.prompt_set
        facts = {"num_prompts": len(found.prompts), "num_bad_rows": len(found.bad_rows)}
        return Product(found.fingerprint, self._config.pipeline.prompts.source, facts=facts)


def with_prompts(config: RunConfig) -> RunConfig:
    """The pipeline's prompts in the place where a sampling program looks for them."""
    pipeline = config.pipeline
    job = config.sampling_job.model_copy(
        update={"prompts": pipeline.prompts, "num_samples": pipeline.num_samples, "url": ""}
    )
    return config.model_copy(update={"sampling_job": job})
