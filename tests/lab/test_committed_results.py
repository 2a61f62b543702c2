"""What the documentation shows of the lab is what the present code makes of the measurement that is committed."""

from pathlib import Path

from cong.config import LabConfig
from cong.lab.experiment.claims import judge_claims
from cong.lab.experiment.experiment import claims_of
from cong.lab.experiment.page import experiment_page
from cong.lab.results import ExperimentResult
from cong.report import write_markdown

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_the_page_of_the_documentation_is_that_of_its_results(tmp_path: Path) -> None:
    result = ExperimentResult.model_validate_json((RESULTS / "lab.json").read_text(encoding="utf-8"))
    page = experiment_page(result, judge_claims(claims_of(LabConfig.model_validate(result.settings)), result.seeds))
    write_markdown(page, tmp_path / "lab.md")
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(made) == 3, "the page and two figures"
    for name, content in made.items():
        assert content == (RESULTS / name).read_bytes(), name
