"""Text of growing completions: whole characters, and stop strings wherever the tokens' boundaries fall."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cong.engine.text import TextStream


def from_bytes(token_ids: Sequence[int]) -> str:
    """One token, one byte: characters of several bytes come in pieces."""
    return bytes(token_ids).decode("utf-8", errors="replace")


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_pieces_add_up_to_the_text_and_never_show_half_a_character(text: str) -> None:
    stream = TextStream(from_bytes)
    pieces = [stream.push(byte) for byte in text.encode("utf-8")]
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text


@settings(deadline=None, max_examples=300)
@given(
    st.text(alphabet="abé", max_size=30),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_string_cuts_at_its_first_appearance(text: str, stops: list[str]) -> None:
    stream = TextStream(from_bytes, tuple(stops))
    shown = ""
    for byte in text.encode("utf-8"):
        shown += stream.push(byte)
        if stream.is_stopped:
            break
    shown += stream.flush()
    ends = sorted((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text)
    if not ends:
        assert not stream.is_stopped
        assert shown == text
        return
    # the stop that is complete first decides; of those complete at once, the one that begins first
    first_end = ends[0][0]
    cut = min(begin for end, begin in ends if end == first_end)
    assert stream.is_stopped
    assert shown == stream.text == text[:cut]


def test_a_stop_across_tokens_is_never_shown_in_part() -> None:
    words = {0: "say ", 1: "ST", 2: "OP", 3: " now", 4: "ART"}
    stream = TextStream(lambda ids: "".join(words[i] for i in ids), ("STOP",))
    assert [stream.push(token_id) for token_id in (0, 1, 4)] == ["say ", "", "START"]
    stream = TextStream(lambda ids: "".join(words[i] for i in ids), ("STOP",))
    assert [stream.push(token_id) for token_id in (0, 1, 2)] == ["say ", "", ""]
    assert stream.is_stopped
    assert stream.text == "say "


def test_a_stop_does_not_act_before_it_may() -> None:
    stream = TextStream(from_bytes, ("a",))
    assert stream.push(ord("a"), can_stop=False) == "a"
    assert stream.push(ord("b")) == "b"
    assert stream.push(ord("a")) == ""
    assert stream.is_stopped
    assert stream.text == "ab"


def test_what_is_incomplete_at_the_end_is_shown_as_it_is() -> None:
    stream = TextStream(from_bytes)
    euro = "€".encode()
    assert [stream.push(byte) for byte in euro[:2]] == ["", ""]
    assert stream.flush() == from_bytes(euro[:2])
