"""Networks are joined when they share their tokens, and what was bridged is said aloud."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cong.errors import ConfigError, TokenizerMismatch
from cong.models import Network, join_networks, load_network
from cong.schemas import Role

MakeNetwork = Callable[..., Path]


def _load(folder: Path, role: Role = "base") -> Network:
    return load_network(str(folder), role=role, dtype="float32", device="cpu")


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_one_network_is_a_set(llama: Network) -> None:
    joined = join_networks([llama])
    assert joined.networks == (llama,)
    assert joined.shared_vocab_size == 290
    assert joined.eos_ids == {1, 4}
    assert joined.context_length == 64
    assert joined.own_bytes == llama.own_bytes


def test_networks_of_different_sizes_are_joined_and_cut_to_the_real_range(
    make_network: MakeNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    aligned = _load(make_network("small", width=290), "aligned")
    base = _load(make_network("large", width=320, hidden_size=64, max_position_embeddings=32))
    joined = join_networks([aligned, base])
    assert joined.shared_vocab_size == 290
    assert joined.context_length == 32
    assert joined.tokenizer is aligned.tokenizer
    assert [identity.role for identity in joined.identities] == ["aligned", "base"]
    assert joined.messages == (
        "logits are cut to the 290 ids that the tokenizer has (widths: small 290, large 320); the rest is padding",
    )
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", message) for message in joined.messages
    ]


def test_where_long_sequences_turn_by_other_angles_they_end_before(make_network: MakeNetwork) -> None:
    angles = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [1.5, 2.0, 3.0, 4.0],
    }
    folder = make_network("long", width=290, rope_parameters={**angles, "original_max_position_embeddings": 24})
    joined = join_networks([_load(make_network("short", width=290), "aligned"), _load(folder)])
    assert joined.context_length == 24
    assert joined.messages == (
        "long turns all positions of a sequence of more than 24 tokens by other angles (longrope), which a cache of "
        "keys cannot follow; sequences end there, not at 64",
    )
    model: Any = joined.networks[1].model
    ids_1T = torch.arange(25)[None]
    first, longest, longer = (model(input_ids=ids_1T[:, :count]).logits[0, 9] for count in (10, 24, 25))
    torch.testing.assert_close(first, longest)
    assert not torch.allclose(first, longer, atol=1e-2)


def test_every_id_of_the_shared_range_has_a_logit_in_every_network(make_network: MakeNetwork) -> None:
    joined = join_networks([_load(make_network("a", width=290), "aligned"), _load(make_network("b", width=301))])
    for network in joined.networks:
        logits = network.model(input_ids=torch.tensor([[joined.shared_vocab_size - 1]])).logits
        assert logits.shape[-1] >= joined.shared_vocab_size


def test_networks_that_agree_are_joined_without_a_word(
    make_network: MakeNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    joined = join_networks([_load(make_network("a", width=290), "aligned"), _load(make_network("b", width=290))])
    assert joined.messages == ()
    assert caplog.text == ""


def test_ends_of_sequence_are_united(make_network: MakeNetwork) -> None:
    aligned, base = make_network("a", width=290), make_network("b", width=290)
    _edit(aligned / "generation_config.json", eos_token_id=[3, 289])
    _edit(base / "generation_config.json", eos_token_id=290)
    joined = join_networks([_load(aligned, "aligned"), _load(base)])
    assert joined.eos_ids == {1, 3, 4, 289}
    assert joined.messages == (
        "networks end sequences differently (a [1, 3, 4, 289], b [1, 4, 290]); any of these ids ends one",
        "b names ends of sequence [290] that are no tokens; they are ignored",
    )


def test_samples_are_known_by_where_sequences_end_too(make_network: MakeNetwork) -> None:
    folder = make_network("a", width=290)
    found = []
    for ends in (4, [4, 3], [3, 4], [1, 3], None):
        _edit(folder / "config.json", eos_token_id=None)
        _edit(folder / "generation_config.json", eos_token_id=ends)
        joined = join_networks([_load(folder)])
        found.append(joined.text_fingerprint)
    tokenizer = joined.tokenizer
    assert tokenizer.eos_id == 4
    assert found[0] == found[4] == tokenizer.fingerprint, "its own end is in its fingerprint"
    assert found[1] == found[2]
    assert len({*found}) == 3


def test_an_absent_end_of_sequence_is_reported(make_network: MakeNetwork) -> None:
    folder = make_network("a", width=290)
    for name in ("config.json", "generation_config.json"):
        _edit(folder / name, eos_token_id=None)
    _edit(folder / "tokenizer_config.json", eos_token=None)
    joined = join_networks([_load(folder)])
    assert joined.eos_ids == frozenset()
    assert "no network names an end of sequence" in joined.messages[0]


def test_different_chat_templates_are_reported_and_the_first_is_used(make_network: MakeNetwork) -> None:
    aligned, base = make_network("a", width=290), make_network("b", width=290)
    (base / "chat_template.jinja").unlink()
    joined = join_networks([_load(aligned, "aligned"), _load(base)])
    assert joined.messages == ("a and b have different chat templates; messages are rendered by that of a",)
    assert joined.tokenizer.chat_template is not None


def test_swapped_ids_are_refused_although_the_sizes_agree(make_network: MakeNetwork) -> None:
    aligned, base = make_network("a"), make_network("b")
    content = json.loads((base / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (base / "tokenizer.json").write_text(json.dumps(content))
    expected = f"a and b give 2 tokens different ids .'a' is {vocab['b']} and {vocab['a']}"
    with pytest.raises(TokenizerMismatch, match=expected):
        join_networks([_load(aligned, "aligned"), _load(base)])


def test_an_added_token_is_refused_by_name(make_network: MakeNetwork) -> None:
    aligned, base = make_network("a"), make_network("b")
    network = _load(aligned)
    network.tokenizer.backend.add_tokens(["<extra>"])
    network.tokenizer.backend.save_pretrained(aligned)
    with pytest.raises(TokenizerMismatch, match="'<extra>' is 290 and absent"):
        join_networks([_load(aligned, "aligned"), _load(base)])


@pytest.mark.parametrize("change", ["bos", "special"])
def test_tokens_with_equal_ids_and_different_roles_are_refused(make_network: MakeNetwork, change: str) -> None:
    aligned, base = make_network("a"), make_network("b")
    if change == "bos":
        _edit(base / "tokenizer_config.json", bos_token="<|end|>")
    else:
        content = json.loads((base / "tokenizer.json").read_text())
        content["added_tokens"][2]["special"] = False
        (base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerMismatch, match="agree on all ids but not on their use"):
        join_networks([_load(aligned, "aligned"), _load(base)])


def test_logits_that_do_not_cover_the_tokenizer_are_refused(make_network: MakeNetwork) -> None:
    with pytest.raises(TokenizerMismatch, match="has logits for 280 tokens, and its tokenizer has ids up to 289"):
        join_networks([_load(make_network("narrow", width=280))])


def test_the_wrong_number_of_networks_and_repeated_roles_are_refused(llama: Network) -> None:
    with pytest.raises(ConfigError, match="0 networks"):
        join_networks([])
    with pytest.raises(ConfigError, match="4 networks"):
        join_networks([llama] * 4)
    with pytest.raises(ConfigError, match="roles are base, base"):
        join_networks([llama, llama])


def test_three_networks_are_joined(llama: Network, llama_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llama_folder, tmp_path / "copy"))
    joined = join_networks([_load(copy, "strong"), _load(llama_folder, "aligned"), llama])
    assert [network.role for network in joined.networks] == ["strong", "aligned", "base"]
    assert len({network.fingerprint for network in joined.networks}) == 1
