"""What an evaluation is going to do and need, known without loading a network or drawing a token."""

from collections.abc import Iterator
from pathlib import Path

from cong.config import RunConfig
from cong.config.models import NetworkConfig
from cong.errors import ArtefactMissing, ConfigError
from cong.evaluation.answers import decoding_name, held_out_prompts, read_answers
from cong.evaluation.judges.opening import open_judges
from cong.models import DTYPES, estimate_memory, open_artefact, read_tensors, weight_files

GIB = 2**30


def plan(config: RunConfig) -> list[str]:
    """One line per thing that will be done; whatever can be checked beforehand has been."""
    settings = config.evaluation
    if not settings.candidates:
        raise ConfigError("evaluation.candidates is empty; name at least one")
    prompts = held_out_prompts(settings)
    judges = open_judges(settings, config.models, config.engine, frozenset())
    lines = [f"{len(prompts):,} prompts from {settings.prompts}"]
    num_answers = 0
    for name, candidate in settings.candidates.items():
        if candidate.answers is not None:
            given = read_answers(name, candidate.answers, prompts)
            num_answers += len(given.answers)
            lines.append(f"candidate {name}: {len(given.answers):,} answers given in {candidate.answers}")
            continue
        counts = {one: settings.num_samples if one > 0.0 else 1 for one in settings.temperatures}
        num_answers += len(prompts) * sum(counts.values())
        decodings = ", ".join(f"{decoding_name(one)} x {count}" for one, count in counts.items())
        kept = config.output_dir / "answers" / f"{name}.jsonl"
        lines.append(
            f"candidate {name}: {len(prompts) * sum(counts.values()):,} answers ({decodings}, at most "
            f"{settings.sampling.max_tokens} tokens) of {candidate.source}, weights {_weights(candidate, config)}; "
            f"{_kept(kept, settings.answers_stream)}"
        )
    lines += [f"judge {judge.name}: {judge.about}; {num_answers:,} answers" for judge in judges]
    lines.append("keys and values of the engine: " + _room(config))
    if settings.gap is not None:
        lines.append(f"gap between {settings.gap.floor} and {settings.gap.ceiling}")
    if settings.misfit is not None:
        lines.append(f"misfit of {settings.misfit.student} to {settings.misfit.weak}, both in memory together")
    return lines


def _weights(network: NetworkConfig, config: RunConfig) -> str:
    try:
        artefact = open_artefact(network.source, revision=network.revision, root=config.models.root, with_weights=False)
        tensors = read_tensors(weight_files(artefact.folder))
    except ArtefactMissing:
        if Path(network.source).expanduser().exists():
            raise
        return "of unknown size (not downloaded yet)"
    estimate = estimate_memory(tensors, DTYPES[config.models.dtype])
    return f"{estimate.weights_bytes / GIB:.3f} GiB in {config.models.dtype}"


def _room(config: RunConfig) -> str:
    engine = config.engine
    if engine.kv_memory_bytes:
        return f"{engine.kv_memory_bytes / GIB:.3f} GiB"
    return f"{engine.kv_memory_fraction:.0%} of what is free once a network is loaded"


def _kept(path: Path, stream: str) -> str:
    if stream:
        return f"those that {stream} holds are not drawn again"
    return f"{sum(1 for _ in _whole_lines(path)):,} samples are in {path}"


def _whole_lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
