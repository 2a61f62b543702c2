"""What the stages of a pipeline took: seconds, tokens, and what each spent most of its time on.

Reads what the work has left in its folders; measures nothing itself.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from cong.pipeline.attempt import SESSIONS, read_lines
from cong.pipeline.board import Standing


@dataclass(frozen=True)
class Cost:
    """Of one complete stage."""

    name: str
    seconds: float
    """Of all attempts that lived to say so."""
    num_tokens: int | None = None
    """Drawn, or trained on."""
    tokens_per_s: float | None = None
    bottleneck: str = ""


def cost_of(standing: Standing) -> Cost:
    """What a complete stage took."""
    marker, folder = standing.marker, standing.folder
    assert marker is not None, f"{standing.stage.name} is not complete"
    assert folder is not None, f"{standing.stage.name} is not complete"
    name = standing.stage.name
    if standing.stage.kind in ("sample", "import"):
        return _of_sampling(name, folder, marker.seconds)
    if standing.stage.kind == "train":
        return _of_training(name, folder, marker.seconds)
    return Cost(name, marker.seconds)


def _of_sampling(name: str, folder: Path, seconds: float) -> Cost:
    sessions = read_lines(folder / SESSIONS)
    total_s = sum(float(session["seconds"]) for session in sessions) or seconds
    num_tokens = sum(int(session["num_tokens"]) for session in sessions)
    phases: defaultdict[str, float] = defaultdict(float)
    for session in sessions:
        for phase, took_s in session["phases"].items():
            phases[phase] += float(took_s)
    phases["loading and writing"] = max(0.0, total_s - sum(phases.values()))
    slowest = max(phases, key=lambda phase: phases[phase])
    share = phases[slowest] / total_s if total_s else 0.0
    return Cost(name, total_s, num_tokens, num_tokens / total_s if total_s else None, f"{slowest} ({share:.0%})")


def _of_training(name: str, folder: Path, seconds: float) -> Cost:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = read_lines(folder / "metrics.jsonl")
    num_tokens = max((int(line["num_tokens"]) for line in lines if "num_tokens" in line), default=None)
    step_s = sum(float(line.get("wait_s") or 0.0) + float(line.get("compute_s") or 0.0) for line in lines)
    return Cost(name, max(seconds, step_s), num_tokens, float(summary["tokens_per_s"]), str(summary["bottleneck"]))
