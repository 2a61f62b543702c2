"""Pairs are joined by what they answer, never by where they lie; what is left out is counted."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cong.config.stream import SampleFilter
from cong.errors import ConfigError
from cong.lab.networks import BOS_ID, EOS_ID, encode
from cong.models import Tokenizer, load_tokenizer
from cong.objectives import DPO, PolicyScores
from cong.schemas import SampleRecord
from cong.stream import StreamReader, open_store
from cong.stream.export import export
from cong.train.data.batch import Example, make_batch
from cong.train.data.pair_files import read_pairs
from cong.train.data.pairs import join_pairs
from cong.train.data.reading import Reading
from cong.train.data.source import ExampleList
from tests.train.worlds import network_folder, sample, write_samples

CONTRASTIVE = SampleFilter(kinds=("contrastive",), finish_reasons=("stop",))
PLAIN = SampleFilter(kinds=("plain",))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(str(network_folder(tmp_path / "network")))


def shown(examples: list[Example]) -> list[tuple[Any, ...]]:
    return [
        (each.key, each.prompt_id, each.prompt_ids.tolist(), [side.tolist() for side in each.responses])
        for each in examples
    ]


def joined(chosen: Path, rejected: Path) -> Any:
    reading = Reading(load_tokenizer(str(network_folder(chosen.parent / "network"))))
    return join_pairs((open_store(str(chosen)), CONTRASTIVE), (open_store(str(rejected)), PLAIN), reading)


def test_pairs_are_joined_by_prompt_and_sample_index_however_the_streams_lie(tmp_path: Path) -> None:
    good = [sample(number, sample_index=index, suffix="=" * index) for number in range(20) for index in range(2)]
    bad = [
        sample(number, is_plain=True, sample_index=index, suffix=";" * index)
        for number in range(20)
        for index in range(2)
    ]
    write_samples(tmp_path / "chosen", good)
    write_samples(tmp_path / "rejected", bad)
    wanted = joined(tmp_path / "chosen", tmp_path / "rejected")
    assert wanted.counts == {"chosen_read": 40, "rejected_read": 40, "pairs": 40}
    of_place = {(record.prompt.prompt_id, record.sample_index): record for record in bad}
    by_key = {record.key: record for record in good}
    for example in wanted.examples:
        one = by_key[example.key.split("/")[0]]
        other = of_place[one.prompt.prompt_id, one.sample_index]
        assert example.key == f"{one.key}/{other.key}"
        assert example.prompt_ids.tolist() == list(one.prompt_token_ids)
        assert [side.tolist() for side in example.responses] == [
            list(one.completion_token_ids),
            list(other.completion_token_ids),
        ]
    for seed in range(3):
        rng = random.Random(seed)
        folders = []
        for name, records in (("chosen", good), ("rejected", bad)):
            shuffled = rng.sample(records, len(records))
            folders.append(tmp_path / f"{name}-{seed}")
            for part in range(4):
                write_samples(folders[-1], shuffled[part::4], f"w{part}")
        assert shown(joined(*folders).examples) == shown(wanted.examples)


def test_missing_duplicate_and_equal_partners_are_counted(tmp_path: Path) -> None:
    same = sample(5)
    twin = SampleRecord.model_validate(
        {**sample(5, is_plain=True, suffix="=").model_dump(), **_answer(same), "key": "s-twin"}
    )
    good = [sample(number) for number in range(8)]
    good += [sample(1, suffix="="), sample(9, finish_reason="length")]
    bad = [sample(number, is_plain=True) for number in (0, 1, 2, 3, 9, 30)] + [twin]
    write_samples(tmp_path / "all", [*good, *bad])
    pairs = joined(tmp_path / "all", tmp_path / "all")
    assert pairs.counts == {
        "chosen_read": 9,
        "chosen_duplicate": 1,
        "rejected_read": 7,
        "chosen_without_rejected": 3,
        "pairs_equal": 1,
        "rejected_without_chosen": 2,
        "pairs": 4,
    }
    assert [example.prompt_id for example in pairs.examples] == ["p-0", "p-1", "p-2", "p-3"]
    lowest = min(sample(1).key, sample(1, suffix="=").key)
    assert pairs.examples[1].key.startswith(lowest)


def test_samples_of_equal_tokens_are_a_pair_whatever_their_prompts_are_called(tmp_path: Path) -> None:
    """A file names prompt 3 twice. Which of the names a stream keeps depends on who came first."""

    def named(record: SampleRecord, prompt_id: str) -> SampleRecord:
        return record.model_copy(update={"prompt": record.prompt.model_copy(update={"prompt_id": prompt_id})})

    good = [sample(number) for number in range(6)]
    bad = [sample(number, is_plain=True) for number in range(6)]
    write_samples(tmp_path / "chosen", good)
    write_samples(tmp_path / "rejected", [*bad[:3], named(bad[3], "twin"), *bad[4:]])
    pairs = joined(tmp_path / "chosen", tmp_path / "rejected")
    assert pairs.counts == {"chosen_read": 6, "rejected_read": 6, "pairs_of_other_ids": 1, "pairs": 6}
    assert [example.key for example in pairs.examples] == [f"{a.key}/{b.key}" for a, b in zip(good, bad, strict=True)]
    # A sample of another index is another question.
    write_samples(tmp_path / "other", [*good[:5], named(sample(5, sample_index=1), "p-x")])
    assert joined(tmp_path / "other", tmp_path / "rejected").counts["chosen_without_rejected"] == 1


def _answer(record: SampleRecord) -> dict[str, Any]:
    length = len(record.completion_token_ids)
    return {
        "completion_token_ids": record.completion_token_ids,
        "completion_text": record.completion_text,
        "logprobs": {"strong": (-1.0,) * length},
        "mixture_logprobs": (-1.0,) * length,
        "head_sizes": (1,) * length,
    }


ROWS: list[dict[str, Any]] = [
    {
        "prompt": {"text": "Ma>", "prompt_id": "p1"},
        "chosen": {"text": "abc", "key": "g1"},
        "rejected": {"text": "abd", "key": "b1"},
    },
    {
        "prompt": {"token_ids": [1, 4, 5], "prompt_id": "p2"},
        "chosen": {"text": "", "token_ids": [7, 8, 2]},
        "rejected": {"text": "", "token_ids": [7, 2]},
    },
]


def test_preferences_are_read_as_text_and_as_token_ids(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "pairs.jsonl"
    equal = {**ROWS[0], "rejected": {"text": "abc", "key": "b9"}}
    # As some editors save it, with a mark of the byte order in front.
    path.write_text("\n".join(json.dumps(row) for row in [*ROWS, equal, ROWS[0]]) + "\n", encoding="utf-8-sig")
    pairs = read_pairs(path, tokenizer)
    assert pairs.counts == {"pairs_read": 4, "pairs_equal": 1, "pairs_duplicate": 1}
    first, second = pairs.examples
    assert first.key == "g1/b1"
    assert first.prompt_ids.tolist() == [BOS_ID, *encode("Ma>")]
    assert [side.tolist() for side in first.responses] == [[*encode("abc"), EOS_ID], [*encode("abd"), EOS_ID]]
    assert second.prompt_ids.tolist() == [1, 4, 5]
    assert [side.tolist() for side in second.responses] == [[7, 8, 2], [7, 2]]
    assert second.key.startswith("c-")


def test_whole_conversations_are_told_apart_by_their_last_messages(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}={% endfor %}"
    tokenizer = load_tokenizer(str(network_folder(tmp_path / "network")), chat_template=template)
    asked = [{"role": "user", "content": "ab"}]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("cd", "ef"))
    whole = {"chosen": asked + good, "rejected": asked + bad, "prompt_id": "p1"}
    rows = [{"prompt": asked, "chosen": good, "rejected": bad, "prompt_id": "p1"}, whole, {"prompt": "ab", **whole}]
    found = []
    for number, row in enumerate(rows):
        path = tmp_path / f"pairs-{number}.jsonl"
        path.write_text(json.dumps(row))
        found += shown(read_pairs(path, tokenizer).examples)
    first, *others = found
    assert others == [first, first]
    assert first[2] == [BOS_ID, *encode("ab=")]


def test_an_exported_stream_is_read_back_as_the_same_pairs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_samples(tmp_path / "chosen", (sample(number) for number in range(12)))
    write_samples(tmp_path / "rejected", (sample(number, is_plain=True) for number in range(12)))
    wanted = sorted(shown(joined(tmp_path / "chosen", tmp_path / "rejected").examples))
    for container, name in (("jsonl", "pairs.jsonl"), ("parquet", "pairs.parquet"), ("dataset", "pairs")):
        readers = [StreamReader(open_store(str(tmp_path / side))) for side in ("chosen", "rejected")]
        export(readers[0], tmp_path / name, "preference", container, readers[1])  # type: ignore[arg-type]
        assert sorted(shown(read_pairs(tmp_path / name, tokenizer).examples)) == wanted


def test_parquet_and_saved_datasets_hold_the_same_preferences(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"prompt": "Ma>", "chosen": "abc", "rejected": "b" * number} for number in range(1, 5)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    wanted = shown(read_pairs(tmp_path / "p.jsonl", tokenizer).examples)
    assert len(wanted) == 4
    assert shown(read_pairs(tmp_path / "p.parquet", tokenizer).examples) == wanted
    assert shown(read_pairs(tmp_path / "saved", tokenizer).examples) == wanted


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "has not all of prompt, chosen and rejected"),
        ({"prompt": {"text": "a", "token_ids": [1]}, "chosen": "b", "rejected": "c"}, "is no preference"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "weight": -0.5}, "weight: Input should be greater"),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, "an answer has 0 messages"),
        (
            {"prompt": "a", "chosen": [{"content": "a"}] * 2, "rejected": [{"content": "b"}] * 2},
            "has 2 messages; .* whole",
        ),
        (
            {"prompt": "a", "chosen": [7], "rejected": "c"},
            "is no preference: chosen: Input should be a valid dictionary",
        ),
        ({"prompt": "a", "chosen": {"text": "", "token_ids": [5, 999]}, "rejected": "c"}, "token id 999, .* up to 31"),
        ({"prompt": {"token_ids": [999]}, "chosen": "b", "rejected": "c"}, "token id 999, .* give the pair as text"),
    ],
)
def test_a_wrong_row_is_refused_with_its_place(
    tmp_path: Path, tokenizer: Tokenizer, row: dict[str, Any], message: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=message) as caught:
        read_pairs(path, tokenizer)
    assert f"{path}:3" in str(caught.value)


def test_weights_of_pairs_are_factors_of_their_losses(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{**ROWS[0], "weight": 2.0}, {**ROWS[1], "weight": 0.5}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    weighted = [
        replace(each, frozen={"reference": tuple(np.zeros(len(side), np.float32) for side in each.responses)})
        for each in read_pairs(tmp_path / "pairs.jsonl", tokenizer).examples
    ]

    def loss(examples: list[Example]) -> float:
        responses = make_batch(examples, ("reference",), is_packed=True).responses
        # A log-prob that depends on the token alone, so that it does not matter what else is in the batch.
        scores = PolicyScores(-0.1 * responses.token_ids_N.float())
        return DPO(beta=0.5)(scores, responses, progress=0.0).loss_sum.item()

    first, second = (loss([replace(each, weight=1.0)]) for each in weighted)
    assert loss(weighted) == pytest.approx(2.0 * first + 0.5 * second)
    assert ExampleList(weighted).identity != ExampleList([replace(each, weight=1.0) for each in weighted]).identity


def test_files_that_are_no_pairs_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "pairs.csv").write_text("a,b")
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "ä"}'.encode("latin-1"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("nothing.jsonl", "does not exist"),
        ("pairs.csv", r"neither \.jsonl nor \.parquet"),
        ("broken.jsonl", "broken.jsonl:1 is not JSON"),
        ("latin.jsonl", "latin.jsonl:1 is not UTF-8 text"),
        ("broken.parquet", "broken.parquet cannot be read as Parquet"),
        ("empty", "neither a saved dataset nor Parquet files"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_pairs(tmp_path / name, tokenizer)


def test_examples_of_pairs_are_their_own_arrays(tmp_path: Path) -> None:
    write_samples(tmp_path / "chosen", [sample(0)])
    write_samples(tmp_path / "rejected", [sample(0, is_plain=True)])
    (example,) = joined(tmp_path / "chosen", tmp_path / "rejected").examples
    assert all(isinstance(side, np.ndarray) and side.base is None for side in example.responses)
