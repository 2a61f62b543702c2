"""`cong look`: what the contrast does to a few prompts, token by token."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cong.cli.config import Commands, add_config_options, print_config, resolve_config
from cong.config import RunConfig
from cong.errors import ConfigError
from cong.files import make_folder
from cong.wording import require_installed

if TYPE_CHECKING:
    from cong.schemas import Prompt


def _look(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    if arguments.dry_run:
        return print_config(config)
    prompts = _prompts(config, arguments)
    if arguments.html is not None:
        require_installed("report", "jinja2")
        if arguments.html.is_dir():
            raise ConfigError(f"--html is {arguments.html}, a folder; give the name of a file")
        make_folder(arguments.html.parent)
    import torch
    from rich.console import Console

    from cong.look import STEPS_LEGEND, look, look_page, samples_of, steps_table
    from cong.report import samples_to_rich, to_rich, write_html
    from cong.telemetry import configure_logging

    configure_logging("WARNING")
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    has_steps = arguments.steps or arguments.html is not None
    looks = look(config, prompts, arguments.alpha, has_steps=has_steps)
    console = Console()
    console.print(samples_to_rich(samples_of(looks)))
    if arguments.steps:
        for each in looks:
            for answer in each.answers:
                if answer.steps:
                    console.print(to_rich(steps_table(each.prompt.shown, answer)))
        console.print(STEPS_LEGEND, style="dim", highlight=False)
    if arguments.html is not None:
        write_html(look_page(looks, config), arguments.html)
        console.print(f"page: {arguments.html.resolve()}", highlight=False, soft_wrap=True)
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; write it as 0,0.4,0.8") from error


def _prompts(config: RunConfig, arguments: argparse.Namespace) -> "Sequence[Prompt]":
    from cong.prompts import prompts_of
    from cong.schemas import Message, Prompt

    if bool(arguments.prompt) == (arguments.prompts is not None):
        raise ConfigError("give prompts as arguments, or a file of them with --prompts")
    if arguments.prompts is None:
        if arguments.chat:
            return [Prompt(messages=(Message(role="user", content=text),)) for text in arguments.prompt]
        return [Prompt(text=text) for text in arguments.prompt]
    if arguments.chat:
        raise ConfigError("--chat is for prompts that are arguments; a file says itself what is a conversation")
    if arguments.num_prompts < 1:
        raise ConfigError(f"--num-prompts is {arguments.num_prompts}; give at least 1")
    named = {"source": arguments.prompts, "max_prompts": arguments.num_prompts}
    prompts = list(prompts_of(config.sampling_job.prompts.model_copy(update=named)).strict())
    if not prompts:
        raise ConfigError(f"{arguments.prompts} holds no prompts")
    return prompts


def add_look_command(commands: Commands) -> None:
    """Declare `cong look`."""
    about = "answer a few prompts by base, aligned and contrast, and show what the contrast did to each token"
    parser = commands.add_parser("look", help=about, description=about)
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="what is asked")
    parser.add_argument("--chat", action="store_true", help="ask each PROMPT as a user's message, by the chat template")
    parser.add_argument("--prompts", metavar="FILE", help="ask these instead: what `cong sample` reads")
    parser.add_argument("--num-prompts", type=int, default=3, metavar="N", help="the first N of the file (3)")
    parser.add_argument(
        "--alpha",
        type=_numbers,
        action="extend",
        default=[],
        metavar="A,B",
        help="contrasts to try, as 0,0.4,0.8: 1 = aligned alone, smaller = stronger (that of sampling)",
    )
    parser.add_argument("--steps", action="store_true", help="a table of every contrastive answer, token by token")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with all of it")
    add_config_options(parser)
    parser.set_defaults(run=_look)
