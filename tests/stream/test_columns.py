"""Records to columns and back: what is stored is what was handed in, or it is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cong.errors import StreamError
from cong.lab.records import synthetic_record
from cong.schemas import Message, NetworkIdentity, Prompt, SampleRecord, SamplingParameters, Timings
from cong.stream.columns import SCHEMA, pack, ragged, table_of, to_records, upgraded

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(tuple)
prompts = st.one_of(
    st.builds(Prompt, text=texts),
    st.builds(
        lambda contents: Prompt(messages=tuple(Message(role="user", content=content) for content in contents)),
        st.lists(texts, min_size=1, max_size=3),
    ),
    st.builds(lambda ids: Prompt(token_ids=(1, *ids)), token_ids),
)


@st.composite
def any_record(draw: st.DrawFn) -> SampleRecord:
    num_tokens = draw(st.integers(0, 5))
    floats = st.lists(st.floats(-(2.0**100), 0.0, width=32), min_size=num_tokens, max_size=num_tokens).map(tuple)
    roles = draw(st.sets(st.sampled_from(["aligned", "base", "strong"])))
    return SampleRecord(
        key=draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)),
        kind=draw(st.sampled_from(["contrastive", "plain"])),
        prompt=draw(prompts),
        prompt_token_ids=draw(token_ids),
        completion_text=draw(texts),
        completion_token_ids=tuple(range(num_tokens)),
        logprobs={role: draw(floats) for role in roles},
        mixture_logprobs=draw(floats),
        head_sizes=tuple(range(1, num_tokens + 1)),
        finish_reason=draw(st.sampled_from(["stop", "length", "error"])),
        parameters=SamplingParameters.contrastive(draw(st.floats(0.1, 2.0)), stop=("a",)),
        sample_index=draw(st.integers(0, 2**63 - 1)),
        networks=(NetworkIdentity(role="base", name="n", fingerprint="f"),),
        tokenizer_fingerprint="t",
        software=draw(st.dictionaries(texts, texts, max_size=2)),
        timings=Timings(total_s=draw(st.floats(0.0, 1e9))),
        created_at=draw(texts),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(any_record(), min_size=1, max_size=4))
def test_what_is_stored_is_what_was_handed_in(handed_in: list[SampleRecord]) -> None:
    table = table_of([pack(record) for record in handed_in])
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert to_records(table) == handed_in


def test_derived_columns_agree_with_the_record() -> None:
    made = [synthetic_record(number, num_tokens=50) for number in range(3)] + [synthetic_record(7, is_plain=True)]
    table = table_of([pack(record) for record in made])
    assert table.column("num_tokens").to_pylist() == [50, 50, 50, 8]
    for name in ("implicit_reward_sum", "implicit_reward_mean"):
        expected = [getattr(record, name) for record in made]
        assert expected[3] is None
        *pairs, plain = table.column(name).to_pylist()
        assert plain is None
        assert pairs == pytest.approx(expected[:3], rel=1e-12)


def test_columns_are_read_as_numpy_without_per_record_work() -> None:
    made = [synthetic_record(number, num_tokens=number) for number in range(5)] + [synthetic_record(9, is_plain=True)]
    table = table_of([pack(record) for record in made])
    ids = ragged(table.slice(1), "completion_token_ids")
    assert [tuple(ids.row(row)) for row in range(5)] == [record.completion_token_ids for record in made[1:]]
    assert ids.values.dtype == np.int32
    assert len(ragged(table, "logprobs_aligned").row(5)) == 0


@pytest.mark.parametrize(
    "change",
    [{"head_sizes": (2**31,)}, {"sample_index": 2**63}, {"mixture_logprobs": (-1e300,)}],
)
def test_numbers_that_a_column_cannot_hold_are_refused(change: dict[str, object]) -> None:
    record = SampleRecord.model_validate(synthetic_record(0, num_tokens=1).model_dump() | change)
    with pytest.raises(StreamError, match="cannot be stored"):
        pack(record)


def test_a_later_schema_version_is_refused() -> None:
    table = table_of([pack(synthetic_record(0))])
    with pytest.raises(StreamError, match=r"schema version 2.*reads 1 to 1"):
        upgraded(table, 2)
