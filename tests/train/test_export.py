"""The exported folder is the trained network: in transformers, in our engine, with or without its adapter."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from cong.config import RunConfig
from cong.config.engine import EngineConfig
from cong.decoding import prompt_seed
from cong.engine import Engine
from cong.lab.networks import load_network as lab_network
from cong.lab.sampler import reference_sample
from cong.models import attach_adapter, join_networks, load_network
from cong.schemas import SampleRequest, SamplingParameters
from cong.train.export import title_of
from cong.train.run import train
from tests.train.worlds import run_config, sample, write_samples

TOKENS = torch.tensor([[1, 5, 9, 3, 12, 7, 20]])


def in_transformers(folder: Path, **options: Any) -> Any:
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_pretrained(str(folder), **options).eval()


def trained_weights(config: RunConfig) -> dict[str, torch.Tensor]:
    newest = sorted((config.output_dir / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "backend" / "weights.safetensors")


def test_logits_in_transformers_are_those_of_the_trained_network(root: Path) -> None:
    config = run_config(root)
    outcome = train(config, is_quiet=True)
    assert outcome.model_folder == config.output_dir / "model"
    network = lab_network(root / "network")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(trained_weights(config)[name])
        wanted = network(input_ids=TOKENS).logits
        found = in_transformers(outcome.model_folder, attn_implementation="eager")(input_ids=TOKENS).logits
        before = in_transformers(root / "network", attn_implementation="eager")(input_ids=TOKENS).logits
    assert torch.equal(found, wanted)
    assert not torch.allclose(found, before, atol=1e-3)


def test_the_engine_draws_from_it_what_the_reference_sampler_draws(root: Path) -> None:
    outcome = train(run_config(root), is_quiet=True)
    assert outcome.model_folder is not None
    network = load_network(str(outcome.model_folder), role="strong", dtype="float32", device="cpu")
    request = SampleRequest(
        prompt=sample(150).prompt, parameters=SamplingParameters.plain(max_tokens=12, seed=4), num_samples=3
    )
    prompt = sample(150).prompt_token_ids
    seeded = request.parameters.model_copy(update={"seed": prompt_seed(request.parameters.seed, prompt)})
    wanted = reference_sample(
        [in_transformers(outcome.model_folder)],
        [prompt] * 3,
        [seeded] * 3,
        [0, 1, 2],
        sorted(network.eos_ids),
    )
    engine = Engine(join_networks([network]), EngineConfig(kv_memory_bytes=2_000_000))
    drawn = {record.sample_index: record.completion_token_ids for record in engine.generate([request])}
    assert [drawn[index] for index in range(3)] == [tuple(each.token_ids) for each in wanted]


def test_an_adapter_is_exported_merged_and_by_itself(root: Path) -> None:
    config = run_config(root, {"lora": {"rank": 4}, "optimizer": {"learning_rate": 2e-2}})
    outcome = train(config, is_quiet=True)
    assert outcome.model_folder is not None
    assert all("lora_" in name for name in trained_weights(config))
    base = load_network(str(root / "network"), role="base", dtype="float32", device="cpu")
    adapted = attach_adapter(base, str(outcome.model_folder / "adapter"), role="aligned")
    with torch.no_grad():
        merged = in_transformers(outcome.model_folder)(input_ids=TOKENS).logits
        apart = adapted.model(input_ids=TOKENS).logits
        before = base.model(input_ids=TOKENS).logits
    assert torch.allclose(merged, apart, atol=1e-5)
    assert not torch.allclose(merged, before, atol=1e-2)


def test_an_adapter_is_kept_as_it_was_trained_whatever_its_network_is_exported_in(root: Path) -> None:
    config = run_config(root, {"lora": {"rank": 4}, "export_dtype": "bfloat16", "max_steps": 2})
    train(config, is_quiet=True)
    kept = load_file(config.output_dir / "model" / "adapter" / "adapter_model.safetensors")
    trained = {f"base_model.model.{name.replace('.default', '')}": w for name, w in trained_weights(config).items()}
    assert kept.keys() == trained.keys()
    assert all(torch.equal(weight, trained[name]) for name, weight in kept.items())
    merged = load_file(config.output_dir / "model" / "model.safetensors")
    assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}


def test_a_network_is_trained_on_from_where_the_last_stage_ended(root: Path) -> None:
    """SFT, then DPO from its network, which is the reference: the two stages of the method."""
    first = train(run_config(root), is_quiet=True)
    write_samples(root / "own", (sample(number, is_plain=True) for number in range(40)), "own")
    settings = {
        "network": {"source": str(first.model_folder)},
        "objective": {"name": "dpo", "parameters": {"beta": 0.5}},
        "data": {"kind": "joined", "rejected": {"location": str(root / "own")}},
        "evaluation": {"held_out_share": 0.2},
        "num_epochs": 4,
    }
    second = train(run_config(root, settings, output_dir=root / "second"), is_quiet=True)
    assert second.metrics["eval/reward_margin"] > 0.05
    assert second.metrics["eval/accuracy"] > 0.6
    assert second.metrics["eval/implicit_reward_margin"] == pytest.approx(
        second.metrics["eval/reward_margin"] / 0.5, rel=1e-5
    )
    assert second.metrics["reward_margin"] > 0.05


@pytest.mark.parametrize(
    ("setting", "dtype"), [("stored", torch.float32), ("bfloat16", torch.bfloat16), ("float32", torch.float32)]
)
def test_weights_are_exported_in_the_type_that_is_asked_for(root: Path, setting: str, dtype: torch.dtype) -> None:
    config = run_config(root, {"export_dtype": setting, "max_steps": 1})
    train(config, is_quiet=True)
    weights = load_file(config.output_dir / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {dtype}


def test_the_card_says_where_the_network_comes_from(root: Path) -> None:
    config = run_config(root)
    train(config, is_quiet=True)
    folder = config.output_dir / "model"
    card = (folder / "README.md").read_text()
    fingerprint = load_network(str(root / "network"), role="base", dtype="float32", device="cpu").fingerprint
    for text in ("library_name: transformers", f"| {fingerprint} |", "| train.objective.name | sft |", "| cong | "):
        assert text in card
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"} <= {
        path.name for path in folder.iterdir()
    }
    assert not [path.name for path in config.output_dir.iterdir() if path.name.startswith(".")]
    assert "base_model" not in card, "a folder is no id of the hub"
    assert title_of(folder) == "run"
    assert title_of(root / "network") is None, "it was not trained by cong"


def test_the_card_names_the_strong_model_of_the_configuration(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network of its own the run trains `models.strong`: the folder it is started in has no say."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub = root / "hub" / "models--org--tiny"
    shutil.copytree(root / "network", hub / "snapshots" / commit)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "hub"))
    (root / "README.md").write_text("# another network\n- cong\n")
    monkeypatch.chdir(root)
    config = run_config(root, {"network": {"source": ""}, "max_steps": 1}, models={"strong": {"source": "org/tiny"}})
    train(config, is_quiet=True)
    card = (config.output_dir / "model" / "README.md").read_text()
    assert "\nbase_model: org/tiny\n" in card
    assert "| network | org/tiny |" in card
