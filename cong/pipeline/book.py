"""Every stage and every method, as values; a pipeline is what has to be made for the methods that are asked for.

To add a method, add its stages and an entry to `METHODS`. Knows no files.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cong.errors import ConfigError
from cong.pipeline.stage import Stage

WEAK_BASE, WEAK_ALIGNED, STRONG_BASE = "weak-base", "weak-aligned", "strong-base"
PROMPTS, HELD_OUT, PREFERENCES = "prompts", "held-out", "preferences"
CEILING, GOLD_ANSWERS = "ceiling", "gold-answers"

CONTRASTIVE = Stage(
    "sample",
    "sample",
    "contrastive samples of the weak pair",
    {"aligned": WEAK_ALIGNED, "base": WEAK_BASE, "prompts": PROMPTS},
    "sampling",
)
PLAIN = Stage(
    "plain-samples",
    "sample",
    "plain samples of the aligned weak model",
    {"aligned": WEAK_ALIGNED, "prompts": PROMPTS},
    "pipeline.plain_sampling",
)

_OF_THE_METHOD = (
    Stage(
        "cong-s",
        "train",
        "SFT of the strong model on contrastive samples",
        {"network": STRONG_BASE, "samples": "sample"},
        "pipeline.imitate",
    ),
    Stage(
        "own-samples",
        "sample",
        "plain samples of the model that ConG-S has made",
        {"strong": "cong-s", "prompts": PROMPTS},
        "pipeline.own_sampling",
    ),
    Stage(
        "cong",
        "train",
        "DPO from ConG-S: contrastive samples over its own",
        {"network": "cong-s", "chosen": "sample", "rejected": "own-samples"},
        "pipeline.prefer",
    ),
)


def with_strong(stages: Sequence[Stage], strong: str, prefix: str) -> tuple[Stage, ...]:
    """The same stages under other names, with another network in the strong model's place."""
    others = {STRONG_BASE: strong} | {stage.product: prefix + stage.product for stage in stages}
    return tuple(replace(stage.taking(others), name=prefix + stage.name) for stage in stages)


STAGES = (
    Stage(
        "align-weak",
        "train",
        "DPO of the weak model on preferences",
        {"network": WEAK_BASE, "pairs": PREFERENCES},
        "pipeline.align",
        makes=WEAK_ALIGNED,
    ),
    CONTRASTIVE,
    PLAIN,
    *_OF_THE_METHOD,
    *with_strong(_OF_THE_METHOD, WEAK_BASE, "self-"),
    Stage(
        "weak-sft",
        "train",
        "SFT of the strong model on plain samples",
        {"network": STRONG_BASE, "samples": "plain-samples"},
        "pipeline.imitate",
    ),
    Stage(
        "aux-conf",
        "train",
        "the same with auxiliary confidence",
        {"network": STRONG_BASE, "samples": "plain-samples"},
        "pipeline.aux_conf",
    ),
    Stage(
        "wspo",
        "train",
        "regression of the strong model on the weak pair's log-ratio",
        {"network": STRONG_BASE, "samples": "plain-samples", "aligned": WEAK_ALIGNED, "base": WEAK_BASE},
        "pipeline.wspo",
    ),
    Stage(
        "gold-samples",
        "import",
        "given answers as tokens of the strong model",
        {"texts": GOLD_ANSWERS, "tokenizer": STRONG_BASE},
    ),
    Stage(
        "train-ceiling",
        "train",
        "SFT of the strong model on given answers",
        {"network": STRONG_BASE, "samples": "gold-samples"},
        "pipeline.ceiling_training",
        makes=CEILING,
    ),
)
"""In no order but for people: what runs first follows from what is taken."""


SWEEP = Stage(
    "alpha-sweep",
    "sweep",
    "the weak pair at several strengths of contrast",
    {"prompts": HELD_OUT, "aligned": WEAK_ALIGNED, "base": WEAK_BASE},
)
"""Where `pipeline.alphas` asks for it."""


@dataclass(frozen=True)
class Method:
    """One way from a weak pair to a trained model."""

    about: str
    candidates: Mapping[str, str]
    """Models that are judged: name in tables -> product."""
    shares_tokens: bool = False
    """It compares log-probs of single tokens between the weak and the strong model."""


METHODS: Mapping[str, Method] = {
    "cong": Method("contrastive samples: imitate, then prefer over one's own", {"ConG-S": "cong-s", "ConG": "cong"}),
    "weak-sft": Method("imitate plain samples of the aligned weak model", {"WeakSFT": "weak-sft"}),
    "aux-conf": Method("imitate them with auxiliary confidence", {"AuxConf": "aux-conf"}),
    "wspo": Method("fit the weak pair's log-ratio", {"WSPO": "wspo"}, shares_tokens=True),
    "self": Method(
        "ConG with the weak model as its own student", {"self ConG-S": "self-cong-s", "self ConG": "self-cong"}
    ),
}
FLOOR_NAME, CEILING_NAME = "weak aligned", "ceiling"

GAINS = (("ConG-S", "WeakSFT"), ("ConG", "ConG-S"), ("ConG", "WSPO"), ("ConG", FLOOR_NAME), ("self ConG", FLOOR_NAME))
"""Differences that a report states, prompt by prompt, where both sides are judged."""


def display_name(product: str) -> str:
    """What tables call a network that a stage has made."""
    judged = {made: name for method in METHODS.values() for name, made in method.candidates.items()}
    return {WEAK_ALIGNED: FLOOR_NAME, CEILING: CEILING_NAME, **judged}.get(product, product)


def methods_of(names: Iterable[str]) -> list[Method]:
    """Methods by their names."""
    listed = list(names)
    unknown = [name for name in listed if name not in METHODS]
    if unknown:
        raise ConfigError(f"pipeline.methods names {unknown[0]!r}; known are {', '.join(METHODS)}")
    return [METHODS[name] for name in listed]


def through_text(stages: Sequence[Stage], strong: str) -> tuple[Stage, ...]:
    """The stages for a strong model with a tokenizer of its own: it learns from the samples' text."""
    sources = ("sample", "plain-samples")
    texts = {name: f"{name}-text" for name in sources}
    imports = tuple(
        Stage(text, "import", "their text as tokens of the strong model", {"texts": name, "tokenizer": strong})
        for name, text in texts.items()
    )
    of_strong = _made_from(stages, strong)
    changed = (
        stage.taking(texts) if stage.kind == "train" and stage.product in of_strong else stage for stage in stages
    )
    return (*changed, *imports)


def _made_from(stages: Sequence[Stage], network: str) -> set[str]:
    """Products that are this network, trained once or several times."""
    found = {network}
    while True:
        more = {stage.product for stage in stages if stage.inputs.get("network") in found} - found
        if not more:
            return found
        found |= more


def needed(stages: Sequence[Stage], wanted: Iterable[str], given: Iterable[str]) -> list[Stage]:
    """The stages that make what is wanted from what is given, each behind those it takes something from."""
    makers = {stage.product: stage for stage in stages}
    known, ordered = set(given), []

    def add(product: str, by: str) -> None:
        if product in known:
            return
        if product not in makers:
            raise ConfigError(
                f"{by} needs {product}, and it is not given; {_REMEDIES.get(product, 'nothing makes it')}"
            )
        known.add(product)
        stage = makers[product]
        for name in stage.inputs.values():
            add(name, stage.name)
        ordered.append(stage)

    for product in wanted:
        add(product, "the pipeline")
    return ordered


_REMEDIES = {
    WEAK_BASE: "set models.base.source",
    WEAK_ALIGNED: "set models.aligned.source, or pipeline.preferences",
    PREFERENCES: "set pipeline.preferences to pairs, or models.aligned.source to a weak model that is aligned",
    STRONG_BASE: "set models.strong.source",
    PROMPTS: "set pipeline.prompts.source",
}
