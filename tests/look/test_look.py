"""A look: what could have been drawn at each token, as the engine drew it, and the command that shows it."""

from pathlib import Path

import pytest
import torch

from cong.cli import main
from cong.config import EngineConfig, ModelsConfig, NetworkConfig, RunConfig
from cong.engine import Engine
from cong.lab.bases import SHIPPED
from cong.lab.networks import load_network
from cong.lab.sampler import reference_sample
from cong.look import Step, decodings, look, look_page, read_steps, samples_of
from cong.models import NetworkSet, load_networks
from cong.report.rendering import html
from cong.schemas import Prompt, SampleRecord, SampleRequest, SamplingParameters

PROMPTS = ["Saxc=", "Mabcde=", "Ofgbe="]
PAIR = ModelsConfig(
    aligned=NetworkConfig(source=str(SHIPPED / "strong_base")),
    base=NetworkConfig(source=str(SHIPPED / "weak_base")),
    dtype="float32",
)


@pytest.fixture(scope="module")
def networks() -> NetworkSet:
    return load_networks(PAIR)


def drawn(parameters: SamplingParameters) -> list[SampleRecord]:
    engine = Engine(load_networks(PAIR), EngineConfig())
    requests = [SampleRequest(prompt=Prompt(text=text), parameters=parameters, num_samples=4) for text in PROMPTS]
    return list(engine.generate(requests))


@pytest.mark.parametrize(
    "asked",
    [
        {"alpha": 0.4},
        {"alpha": 0.0, "temperature": 0.7, "top_p": 0.9, "head_lambda": 0.01},
        {"alpha": 0.2, "repetition_penalty": 1.4, "penalty_rule": "additive", "head_lambda": 0.001},
        {"alpha": 0.2, "repetition_penalty": 1.4, "penalty_rule": "reference", "head_lambda": 0.001},
        {"alpha": 0.5, "min_tokens": 9, "top_k": 3, "exempt_token_ids": (2, 3)},
        {"weights": (1.0, -0.5), "network_temperatures": (0.8, 1.2)},
    ],
    ids=str,
)
def test_a_look_sees_the_distribution_that_each_token_was_drawn_from(
    networks: NetworkSet, asked: dict[str, object]
) -> None:
    parameters = SamplingParameters.model_validate({"max_tokens": 26, "seed": 3, **asked})
    for record in drawn(parameters):
        steps = read_steps(networks, record, 4)
        assert [step.head_size for step in steps] == list(record.head_sizes)
        assert "".join(step.drawn.text for step in steps).replace("<eos>", "") == record.completion_text
        found = torch.tensor([[step.drawn.mixed, *step.drawn.logprobs] for step in steps])
        kept = torch.tensor([record.mixture_logprobs, record.logprobs["aligned"], record.logprobs["base"]]).T
        torch.testing.assert_close(found, kept, atol=1e-4, rtol=0.0)
        for step in steps:
            _check_favourites(step)


def _check_favourites(step: Step) -> None:
    likelihoods = [choice.mixed for choice in step.favourites]
    assert likelihoods == sorted(likelihoods, reverse=True)
    assert step.drawn.mixed <= likelihoods[0] + 1e-6
    assert 1 <= len(step.favourites) <= min(4, step.head_size)
    best = max(step.favourites, key=lambda choice: choice.logprobs[0])
    assert step.is_turned or step.favourites[0] == best


def test_a_long_sample_is_read_in_parts(networks: NetworkSet, monkeypatch: pytest.MonkeyPatch) -> None:
    record = max(drawn(SamplingParameters(max_tokens=40, ignore_eos=True)), key=lambda one: one.key)
    whole = read_steps(networks, record, 3)
    monkeypatch.setattr("cong.look.steps._TOKENS_AT_ONCE", 7)
    assert len(whole) == 40
    assert read_steps(networks, record, 3) == whole


def test_each_way_is_what_its_name_says() -> None:
    config = RunConfig(models=PAIR, sampling=SamplingParameters(temperature=0.0, max_tokens=12))
    (first, *_) = looks = look(config, [Prompt(text=text) for text in PROMPTS], [0.0, 1.0], has_steps=True)
    assert [answer.label for answer in first.answers] == ["base", "aligned", "alpha=0", "alpha=1"]
    assert [bool(answer.steps) for answer in first.answers] == [False, False, True, True]
    aligned, base = (load_network(SHIPPED / name) for name in ("strong_base", "weak_base"))
    plain = SamplingParameters.plain(temperature=0.0, max_tokens=12)
    for each in looks:
        by_label = {answer.label: answer for answer in each.answers}
        for label, network in (("base", base), ("aligned", aligned)):
            prompt_ids = by_label[label].record.prompt_token_ids
            (alone,) = reference_sample([network], [prompt_ids], [plain], [0], eos_token_ids=[2])
            assert by_label[label].record.completion_token_ids == alone.token_ids
        # At alpha 1 the base has no say: greedily it is the aligned model.
        assert by_label["alpha=1"].record.completion_token_ids == by_label["aligned"].record.completion_token_ids


def test_without_alphas_the_contrast_is_that_of_the_configuration() -> None:
    assert list(decodings(SamplingParameters.contrastive(0.3), ())) == ["base", "aligned", "alpha=0.3"]
    other = SamplingParameters(weights=(0.5, -0.5))
    assert list(decodings(other, ()).values())[-1] == other


def test_prompts_of_equal_tokens_are_answered_once_and_shown_twice() -> None:
    config = RunConfig(models=PAIR, sampling=SamplingParameters(max_tokens=8))
    twins = [Prompt(text="Saxc=", prompt_id=name) for name in ("one", "other")]
    one, other = look(config, twins, has_steps=False)
    assert [answer.record.key for answer in one.answers] == [answer.record.key for answer in other.answers]


def test_the_page_tells_what_could_have_been_drawn() -> None:
    config = RunConfig(models=PAIR, sampling=SamplingParameters(max_tokens=12))
    looks = look(config, [Prompt(text=text) for text in PROMPTS], [0.2, 0.6], has_steps=True)
    page = html(look_page(looks, config))
    for expected in ("favourite turned", "Prompt 3, token by token", "alpha=0.2: Saxc=", "100.0%"):
        assert expected in page
    samples = samples_of(looks)
    for each, shown in zip(looks, samples.comparisons, strict=True):
        for answer, response in zip(each.answers, shown.responses, strict=True):
            assert response.mean_ratio == pytest.approx(answer.record.implicit_reward_mean)


def command(*arguments: str) -> int:
    settings = ["models.dtype=float32", "sampling.max_tokens=12"]
    settings += [f"models.aligned.source={PAIR.aligned.source}", f"models.base.source={PAIR.base.source}"]
    return main(["look", *(part for setting in settings for part in ("--set", setting)), *arguments])


def test_the_command_shows_tokens_and_leaves_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    page = tmp_path / "look.html"
    arguments = ["--prompts", str(prompts), "--num-prompts", "2", "--alpha", "0.2,0.6"]
    assert command(*arguments, "--steps", "--html", str(page)) == 0
    shown = capsys.readouterr().out
    for expected in ("Saxc=", "base", "aligned", "alpha=0.2", "alpha=0.6", "head set", "favourites of the contrast"):
        assert expected in shown
    assert PROMPTS[2] not in shown
    assert "Prompt 2, token by token" in page.read_text()


def test_a_file_is_read_as_the_settings_of_prompts_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"task": "Saxc=", "text": "another column"}\n')
    column = ["--set", "sampling_job.prompts.prompt_column=task"]
    assert command("--prompts", str(rows), "--alpha", "0.4", *column) == 0
    assert "Saxc=" in (shown := capsys.readouterr().out)
    assert "another column" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give prompts as arguments, or a file"),
        (["a", "--prompts", "b.txt"], "give prompts as arguments, or a file"),
        (["--prompts", "b.txt", "--chat"], "--chat is for prompts that are arguments"),
        (["--prompts", "b.txt", "--num-prompts", "0"], "--num-prompts is 0; give at least 1"),
        (["Saxc=", "--alpha=-1"], "alpha is -1.0; it must be a number from 0 to 100"),
        (["Saxc=", "--alpha", "nan"], "alpha is nan; it must be a number from 0 to 100"),
        (["Saxc=", "--set", "models.aligned.source=''"], "a look needs a pair"),
        (["Saxc=", "--chat"], "chat template"),
        (["Saxc=", "--html", "."], "--html is ., a folder; give the name of a file"),
        (["Sax" * 400], "tokens"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_alphas_that_are_no_numbers_are_told_how_to_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command("Saxc=", "--alpha", "0.2;0.4")
    assert ended.value.code == 2
    assert "'0.2;0.4' is no list of numbers; write it as 0,0.4,0.8" in capsys.readouterr().err


def test_a_look_without_steps_loads_the_networks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(models: ModelsConfig) -> NetworkSet:
        raise AssertionError(f"{models} are loaded again")

    monkeypatch.setattr("cong.look.looking.load_networks", refused)
    config = RunConfig(models=PAIR, sampling=SamplingParameters(max_tokens=4))
    (only,) = look(config, [Prompt(text="Saxc=")], has_steps=False)
    assert [len(answer.texts) for answer in only.answers] == [
        len(answer.record.completion_token_ids) for answer in only.answers
    ]
