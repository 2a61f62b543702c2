"""What one run of the chain leaves on disk: the page, the numbers behind it, and the models."""

import json
from collections.abc import Mapping
from pathlib import Path

from cong.files import write_file
from cong.lab.chain.chain import Chain
from cong.lab.chain.page import chain_page
from cong.lab.decodings import BASE
from cong.lab.names import CEILING, CONG, CONG_S, STRONG_BASE, WEAK_ALIGNED, WEAK_SFT
from cong.lab.networks import save_network
from cong.lab.summaries import summarize
from cong.report import write_html

MODEL_FOLDERS = {
    BASE: "weak_base",
    WEAK_ALIGNED: "weak_aligned",
    STRONG_BASE: "strong_base",
    WEAK_SFT: "weak_sft",
    CONG_S: "cong_s",
    CONG: "cong",
    CEILING: "ceiling",
}


def chain_numbers(chain: Chain, facts: Mapping[str, str | int | float]) -> dict[str, object]:
    """Every number of the run as plain data."""
    return {
        "facts": dict(facts),
        "weak": {name: summarize(answers).model_dump() for name, answers in chain.weak.items()},
        "labels": {name: summarize(answers).model_dump() for name, answers in chain.labels.items()},
        "models": {
            name: {temperature: summarize(answers).model_dump() for temperature, answers in sets.items()}
            for name, sets in chain.judged.items()
        },
    }


def write_chain(chain: Chain, facts: Mapping[str, str | int | float], folder: Path) -> dict[str, Path]:
    """Write everything below a folder; returns what lies where."""
    for name, network in chain.models.items():
        save_network(network, folder / "models" / MODEL_FOLDERS[name])
    results, page = folder / "results.json", folder / "report.html"
    write_file(results, (json.dumps(chain_numbers(chain, facts), indent=1) + "\n").encode())
    write_html(chain_page(chain, facts), page)
    return {"models": folder / "models", "results": results, "report": page}
