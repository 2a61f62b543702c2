"""Text becomes ids with special tokens exactly once, and ids become the text that they spell."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cong.errors import ArtefactMissing
from cong.models import Tokenizer, detokenize, encode_completion, encode_prompt, load_tokenizer
from cong.models.tokenizer import end_ids

texts = st.text(st.characters(codec="utf-8"), max_size=30).filter(lambda text: "<|" not in text)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    """The shared tokenizer, loaded."""
    return load_tokenizer(str(tokenizer_folder))


def test_the_facts_are_those_of_the_files(tokenizer: Tokenizer, tokenizer_folder: Path) -> None:
    stored = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    assert tokenizer.token_to_id == stored["model"]["vocab"]
    assert tokenizer.num_tokens == len(stored["model"]["vocab"]) == 290
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 4, 5)
    assert tokenizer.special_ids == {0, 1, 2, 3, 4, 5}
    assert tokenizer.prefix_ids == (0,)


def test_the_real_range_reaches_to_the_highest_id_and_not_to_the_number_of_tokens(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["after a gap"] = 294
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(str(tmp_path)).num_tokens == 295


@settings(max_examples=50, deadline=None, derandomize=True)
@given(text=texts)
def test_text_survives_the_round_trip_and_gets_one_prefix(tokenizer: Tokenizer, text: str) -> None:
    ids = encode_prompt(tokenizer, text)
    assert ids == [0, *encode_completion(tokenizer, text)]
    assert ids.count(0) == 1
    assert detokenize(tokenizer, ids) == text
    assert detokenize(tokenizer, ids, with_special_tokens=True) == "<|begin|>" + text


def test_a_text_that_begins_with_the_prefix_gets_no_second_one(tokenizer: Tokenizer) -> None:
    assert encode_prompt(tokenizer, "<|begin|>the cat") == encode_prompt(tokenizer, "the cat")
    assert encode_prompt(tokenizer, "<|begin|>the cat", as_published=True)[:2] == [0, 0]
    assert encode_prompt(tokenizer, "the cat", as_published=True) == encode_prompt(tokenizer, "the cat")


def test_an_end_that_the_tokenizer_appends_is_left_out_of_prompts(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["post_processor"]["single"].append({"SpecialToken": {"id": "<|end|>", "type_id": 0}})
    content["post_processor"]["special_tokens"]["<|end|>"] = {"id": "<|end|>", "ids": [1], "tokens": ["<|end|>"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.backend("the cat")["input_ids"][-1] == 1
    assert tokenizer.prefix_ids == (0,)
    assert encode_prompt(tokenizer, "the cat") == [0, *encode_completion(tokenizer, "the cat")]


def test_a_tokenizer_without_a_prefix_adds_nothing(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.prefix_ids == ()
    assert encode_prompt(tokenizer, "cat") == encode_completion(tokenizer, "cat")


def test_text_is_not_tidied(tokenizer: Tokenizer) -> None:
    text = "it 's , so to say , n't tidy ."
    assert detokenize(tokenizer, encode_prompt(tokenizer, text)) == text


def test_a_folder_without_a_tokenizer_is_named(llama_copy: Path) -> None:
    (llama_copy / "tokenizer.json").unlink()
    with pytest.raises(ArtefactMissing, match="holds no tokenizer"):
        load_tokenizer(str(llama_copy))


@pytest.mark.parametrize(
    "content",
    ['{"model": {}}', '{"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}}', "not JSON"],
)
def test_a_damaged_tokenizer_is_named(llama_copy: Path, content: str) -> None:
    (llama_copy / "tokenizer.json").write_text(content)
    with pytest.raises(ArtefactMissing, match="cannot be loaded"):
        load_tokenizer(str(llama_copy))


def test_end_ids_come_in_every_shape() -> None:
    assert end_ids(None, 3, [4, 5], (3,), []) == {3, 4, 5}
