"""Prompts to ids; messages through the tokenizer's chat template, the same on every day and every machine."""

import datetime
from collections.abc import Sequence

import jinja2

from cong.errors import InvalidRequest, NoChatTemplate, UnsafeArtefact
from cong.models.tokenizer import Tokenizer, encode_prompt
from cong.schemas import Message, Prompt

TEMPLATE_DATE = datetime.date(2024, 7, 26)
"""What templates are told when they ask for today's date: the constant that Llama 3's templates fall back on. With the
real date a prompt would have other ids tomorrow, and no sample made today would be found again."""

_DATE_CODES = (*"aAbBdHIjmMpSyY", "-d", "-m")


def prompt_token_ids(tokenizer: Tokenizer, prompt: Prompt) -> tuple[int, ...]:
    """A prompt in any of its forms as networks read it; ids that are given stay as they are."""
    if prompt.token_ids:
        return prompt.token_ids
    if prompt.messages:
        return tuple(render_chat(tokenizer, prompt.messages))
    return tuple(encode_prompt(tokenizer, prompt.text or ""))


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    date: datetime.date = TEMPLATE_DATE,
    as_published: bool = False,
) -> list[int]:
    """Ids of a conversation, special tokens exactly once whether the template or the tokenizer writes them.

    `as_published` tokenizes the rendered text with special tokens added, as the published code does, which doubles
    the beginning-of-sequence token of templates that write one.
    """
    text = render_text(tokenizer, messages, add_generation_prompt=add_generation_prompt, date=date)
    return encode_prompt(tokenizer, text, as_published=as_published)


def render_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    date: datetime.date = TEMPLATE_DATE,
) -> str:
    """A conversation as the one text that the template makes of it."""
    if tokenizer.chat_template is None:
        raise NoChatTemplate(
            f"{len(messages)} messages were given, and the tokenizer of {tokenizer.name} has no chat template; give a "
            "plain text prompt, or a file with a template as models.chat_template"
        )
    if not messages:
        raise InvalidRequest("messages", "there are none; give at least one")
    try:
        text = tokenizer.backend.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            chat_template=_stop_the_clock(date) + tokenizer.chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except jinja2.exceptions.SecurityError as error:
        raise UnsafeArtefact(f"the chat template of {tokenizer.name} tried to leave its sandbox: {error}") from error
    except jinja2.TemplateSyntaxError as error:
        raise NoChatTemplate(
            f"the chat template of {tokenizer.name} is not valid Jinja (line {error.lineno - 1}: {error.message}); "
            "correct it"
        ) from error
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise InvalidRequest("messages", f"the chat template of {tokenizer.name} refuses them: {error}") from error
    return str(text)


def _stop_the_clock(date: datetime.date) -> str:
    """A Jinja macro that stands in for transformers' clock: callables do not get through to a template, text does."""
    replacements = "".join(f"|replace('%{code}', '{date.strftime('%' + code)}')" for code in _DATE_CODES)
    # The template's own first newline stays: trim_blocks eats the one after the macro.
    return f"{{% macro strftime_now(format) %}}{{{{ format{replacements} }}}}{{% endmacro %}}\n"
