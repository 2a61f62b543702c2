"""The dataset card of an export: what was sampled, from which networks, how, and under which licence."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cong.stream.statistics import SampleFacts

_SIZES = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
_MAX_LISTED = 20


@dataclass(frozen=True)
class CardFacts:
    """What a card tells."""

    name: str
    form: str
    num_rows: int
    licence: str
    columns: Sequence[str]
    sides: Mapping[str, SampleFacts]
    """The samples in the rows: chosen and rejected ones of a preference, else the only ones under an empty name."""


def dataset_card(facts: CardFacts) -> str:
    """The card as Markdown with its machine-readable head."""
    amounts = [_amount(side, samples) for side, samples in facts.sides.items()]
    size = next((label for bound, label in _SIZES if facts.num_rows < bound), "1M<n<10M")
    head = [
        "---",
        f"license: {json.dumps(facts.licence or 'unknown')}",
        f"pretty_name: {json.dumps(facts.name)}",
        "task_categories: [text-generation]",
        "tags: [synthetic, contrastive-generation, cong]",
        f"size_categories: [{size}]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/train-*.parquet",
        "---",
    ]
    body = [
        f"# {facts.name}",
        "",
        f"{facts.num_rows:,} rows of form `{facts.form}` from {' and '.join(amounts)}, exported from a cong stream.",
        "",
        f"Columns: {', '.join(f'`{name}`' for name in facts.columns)}.",
        "",
        "## Networks",
        "",
        *_by_side(facts, _networks),
        "## Sampling parameters",
        "",
        *_by_side(facts, _parameters),
        "## Counts",
        "",
        *_by_side(facts, _counts),
        "## Licence",
        "",
        f"Data: {facts.licence or 'unknown; set it before publishing'}. The terms of the networks above and of the "
        "prompts apply to what was sampled from them.",
        "",
    ]
    return "\n".join([*head, *body])


def _amount(side: str, samples: SampleFacts) -> str:
    return f"{samples.num_records:,} {side}{' ' * bool(side)}samples with {samples.num_tokens:,} tokens"


def _by_side(facts: CardFacts, lines_of: Callable[[SampleFacts], list[str]]) -> list[str]:
    lines = []
    for side, samples in facts.sides.items():
        lines += [*([f"{side.capitalize()}:", ""] if side else []), *lines_of(samples), ""]
    return lines


def _parameters(samples: SampleFacts) -> list[str]:
    return _listed({f"`{parameters}`": count for parameters, count in samples.parameters.items()})


def _counts(samples: SampleFacts) -> list[str]:
    reasons = {f"finish reason `{reason}`": count for reason, count in samples.finish_reasons.items()}
    return [*_listed(reasons), *_listed({f"kind `{kind}`": count for kind, count in samples.kinds.items()})]


def _networks(samples: SampleFacts) -> list[str]:
    lines = []
    for text, count in samples.networks.most_common(_MAX_LISTED):
        named = [f"{item['role']} `{item['name']}` ({item['fingerprint']})" for item in json.loads(text)]
        lines.append(f"- {', '.join(named) or 'none stated'}: {count:,} samples")
    return [*lines, *_listed({f"tokenizer `{name}`": count for name, count in samples.tokenizers.items()})]


def _listed(counts: dict[str, int]) -> list[str]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"- {name}: {count:,}" for name, count in ordered[:_MAX_LISTED]]
    return lines + ([f"- and {len(ordered) - _MAX_LISTED:,} more"] if len(ordered) > _MAX_LISTED else [])
