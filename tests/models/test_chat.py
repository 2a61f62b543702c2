"""Messages become the same ids on every day, with the beginning-of-sequence token exactly once."""

import datetime
import shutil
from pathlib import Path
from typing import Literal

import pytest

from cong.errors import InvalidRequest, NoChatTemplate, UnsafeArtefact
from cong.models import Tokenizer, detokenize, load_tokenizer, render_chat, render_text
from cong.schemas import Message

TALK = (Message(role="system", content="be kind"), Message(role="user", content="the cat?"))
RENDERED = (
    "<|begin|>Today: 26 Jul 2024\n"
    "<|head|>system<|/head|>be kind<|turn|><|head|>user<|/head|>the cat?<|turn|><|head|>assistant<|/head|>"
)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    """The shared tokenizer, whose template writes the beginning-of-sequence token and today's date."""
    return load_tokenizer(str(tokenizer_folder))


def _with_template(folder: Path, template: str) -> Tokenizer:
    return load_tokenizer(str(folder), chat_template=template)


def test_a_conversation_renders_to_known_ids(tokenizer: Tokenizer) -> None:
    ids = render_chat(tokenizer, TALK)
    assert detokenize(tokenizer, ids, with_special_tokens=True) == RENDERED
    assert [token_id for token_id in ids if token_id in tokenizer.special_ids] == [0, 2, 3, 4, 2, 3, 4, 2, 3]


def test_the_published_rendering_doubles_the_first_token_and_nothing_else(tokenizer: Tokenizer) -> None:
    assert render_chat(tokenizer, TALK, as_published=True) == [0, *render_chat(tokenizer, TALK)]


@pytest.mark.parametrize("writes_bos", [True, False])
def test_the_first_token_is_there_once_whoever_writes_it(tokenizer_folder: Path, writes_bos: bool) -> None:
    template = ("{{ bos_token }}" if writes_bos else "") + "{{ messages[0].content }}"
    ids = render_chat(_with_template(tokenizer_folder, template), TALK)
    assert ids[0] == 0
    assert ids.count(0) == 1


def test_the_generation_prompt_can_be_left_out(tokenizer: Tokenizer) -> None:
    whole = render_text(tokenizer, TALK)
    assert whole == render_text(tokenizer, TALK, add_generation_prompt=False) + "<|head|>assistant<|/head|>"


def test_the_date_is_a_constant_unless_given(tokenizer: Tokenizer) -> None:
    assert "26 Jul 2024" in render_text(tokenizer, TALK)
    assert "01 Feb 2025" in render_text(tokenizer, TALK, date=datetime.date(2025, 2, 1))


@pytest.mark.parametrize(
    "template",
    ["\n{{ strftime_now('%Y-%m-%d') }}", "  {% for m in messages %}{{ strftime_now('%A, %-d. %B') }}{% endfor %}\n\n"],
)
def test_templates_are_told_the_date_and_are_otherwise_rendered_as_transformers_does(
    tokenizer_folder: Path, template: str
) -> None:
    tokenizer = _with_template(tokenizer_folder, template)
    plain = [{"role": message.role, "content": message.content} for message in TALK]
    today = datetime.date.today()
    theirs = tokenizer.backend.apply_chat_template(plain, chat_template=template, tokenize=False)
    if today == datetime.date.today():
        assert render_text(tokenizer, TALK, date=today) == theirs
    assert render_text(tokenizer, TALK) != theirs


def test_messages_without_a_template_are_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(NoChatTemplate, match=r"2 messages were given.*no chat template.*models.chat_template"):
        render_chat(load_tokenizer(str(tmp_path)), TALK)


def test_a_given_template_replaces_the_stored_one(tokenizer: Tokenizer, tokenizer_folder: Path) -> None:
    other = _with_template(tokenizer_folder, "{{ messages[0].content }}")
    assert render_text(other, TALK) == "be kind"
    assert other.fingerprint != tokenizer.fingerprint


def test_a_template_of_several_uses_the_default(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert render_text(load_tokenizer(str(tmp_path)), TALK) == RENDERED


def _message(role: Literal["user", "tool"]) -> Message:
    return Message(role=role, content="x")


def test_what_a_template_refuses_is_the_request_s_fault(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"messages: .*no tools here"):
        render_chat(tokenizer, [_message("tool")])


def test_no_messages_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="at least one"):
        render_chat(tokenizer, [])


def test_a_template_that_is_not_jinja_is_named(tokenizer_folder: Path) -> None:
    with pytest.raises(NoChatTemplate, match="not valid Jinja"):
        render_chat(_with_template(tokenizer_folder, "{% if %}"), TALK)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tokenizer_folder: Path, template: str) -> None:
    with pytest.raises(UnsafeArtefact, match="sandbox"):
        render_chat(_with_template(tokenizer_folder, template), TALK)
