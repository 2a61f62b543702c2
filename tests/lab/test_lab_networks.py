"""Tiny networks and their tokenizer: round trips, and folders that everybody's loaders understand."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from cong.lab.networks import (
    BOS_ID,
    CHARACTERS,
    EOS_ID,
    VOCAB,
    build_network,
    build_tokenizer,
    clone,
    decode,
    encode,
    load_network,
    prompt_ids,
    response_ids,
    save_network,
)
from cong.models import load_network as load_any_network

TOKENIZER = build_tokenizer()


@settings(max_examples=50, deadline=None)
@given(st.text(CHARACTERS, max_size=40))
def test_text_survives_the_tokenizer_and_both_encodings_agree(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert tuple(ids) == encode(text)
    assert TOKENIZER.decode(ids) == text
    assert decode(ids) == text


def test_tokenizing_adds_the_beginning_exactly_once() -> None:
    ids = TOKENIZER("Sdbgaf=")["input_ids"]
    assert tuple(ids) == prompt_ids("Sdbgaf=")
    assert ids.count(BOS_ID) == 1
    assert ids[0] == BOS_ID
    assert EOS_ID not in ids


def test_one_character_is_one_token_and_ids_are_those_of_the_table() -> None:
    assert len(TOKENIZER) == len(VOCAB) == 32
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1, 2)
    assert [TOKENIZER.convert_tokens_to_ids(token) for token in VOCAB] == list(range(32))
    assert encode("a") == (3,)
    assert encode("j>") == (12, 19)


def test_an_unknown_character_becomes_the_unknown_token() -> None:
    assert TOKENIZER("aZb", add_special_tokens=False)["input_ids"] == [3, 25, 4]


def test_special_tokens_are_not_part_of_the_text() -> None:
    assert decode([BOS_ID, *response_ids(">abdfg.")]) == ">abdfg."
    assert TOKENIZER.decode([BOS_ID, *response_ids(">abdfg.")], skip_special_tokens=True) == ">abdfg."


def test_fresh_weights_depend_on_the_generator_alone() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        return [p.detach() for p in build_network(16, 1, 2, 24, torch.Generator().manual_seed(seed)).parameters()]

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), state), "building a network moves the global generator"
    assert all(torch.equal(a, b) for a, b in zip(first, weights(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, weights(1), strict=True))


def test_fresh_weights_have_the_specified_scales() -> None:
    network = build_network(64, 2, 2, 168, torch.Generator().manual_seed(0))
    stds = {name: parameter.std().item() for name, parameter in network.named_parameters() if parameter.ndim == 2}
    assert stds["model.embed_tokens.weight"] == pytest.approx(0.02, rel=0.05)
    assert stds["model.layers.0.self_attn.q_proj.weight"] == pytest.approx(64**-0.5, rel=0.05)
    assert stds["model.layers.1.self_attn.o_proj.weight"] == pytest.approx(64**-0.5 / 2, rel=0.05)
    assert stds["model.layers.1.mlp.down_proj.weight"] == pytest.approx(168**-0.5 / 2, rel=0.05)


def test_documented_shapes_have_the_documented_sizes() -> None:
    sizes = [(64, 2, 2, 168), (96, 3, 4, 256)]
    counts = [build_network(*shape, torch.Generator()).num_parameters() for shape in sizes]
    assert counts == [99_648, 335_520]


@pytest.fixture
def folder(tmp_path: Path, networks: list[LlamaForCausalLM]) -> Path:
    save_network(networks[0], tmp_path / "network")
    return tmp_path / "network"


def test_a_saved_network_is_the_same_in_every_loader(folder: Path, networks: list[LlamaForCausalLM]) -> None:
    token_ids = torch.tensor([prompt_ids("Sdbgaf=")])
    loaded = [
        load_network(folder),
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"),
        load_any_network(str(folder), role="aligned", dtype="float32", device="cpu").model,
    ]
    expected = networks[0](input_ids=token_ids).logits
    for network in loaded:
        torch.testing.assert_close(network(input_ids=token_ids).logits, expected)
    assert torch.equal(loaded[0](input_ids=token_ids).logits, expected)


def test_a_saved_folder_holds_no_code_and_no_pickle(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_saved_tokenizer_is_the_same_one(folder: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded("Mabcij=>bcdja.")["input_ids"] == TOKENIZER("Mabcij=>bcdja.")["input_ids"]


def test_a_clone_has_weights_of_its_own(networks: list[LlamaForCausalLM]) -> None:
    copied = clone(networks[0])
    pairs = list(zip(copied.parameters(), networks[0].parameters(), strict=True))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
