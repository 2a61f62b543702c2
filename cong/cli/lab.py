"""`cong lab`: the tiny world in which the whole method is made and measured.

The lab, and torch with it, is imported when a command runs, so that other commands start quickly.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cong.cli.config import Commands, add_config_options, print_config, resolve_config
from cong.config import RunConfig, dump_config
from cong.errors import ConfigError
from cong.wording import require_installed

if TYPE_CHECKING:
    from cong.lab.cache import Cache

LAB_THREADS = 1
"""Where `num_threads` is 0. Two threads are at most 1.4 times faster on networks this small, ten times slower where
something else wants a core, and round differently: with one, the same seed gives the same bits however many cores."""


def _prepare(config: RunConfig) -> "tuple[Cache, int]":
    """The cache of the configuration, and the number of threads now in use."""
    import torch

    from cong.lab.cache import Cache
    from cong.telemetry import configure_logging

    configure_logging("WARNING")
    num_threads = config.num_threads or LAB_THREADS
    torch.set_num_threads(num_threads)
    return Cache(config.cache_dir / "lab"), num_threads


def _demo(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    if arguments.output_dir is not None:
        config = config.model_copy(update={"output_dir": arguments.output_dir})
    if arguments.dry_run:
        return print_config(config)
    require_installed("report", "matplotlib", "jinja2")
    from cong.files import write_file
    from cong.lab.chain.chain import run_chain
    from cong.lab.chain.files import write_chain
    from cong.lab.chain.page import gains_table, results_table
    from cong.lab.software import software_versions
    from cong.report import to_rich

    cache, num_threads = _prepare(config)
    write_file(config.output_dir / "config.yaml", dump_config(config).encode())
    started_s = time.monotonic()
    chain = run_chain(config.lab, cache)
    seconds = round(time.monotonic() - started_s)
    facts: dict[str, str | int | float] = {
        **software_versions(),
        "seed": config.lab.seed,
        "threads": num_threads,
        "seconds": seconds,
    }
    files = write_chain(chain, facts, config.output_dir)
    console = Console()
    console.print(to_rich(results_table(chain)))
    console.print(to_rich(gains_table(chain)))
    console.print(f"took {seconds} s, threads: {num_threads}", highlight=False)
    for name, path in files.items():
        console.print(f"{name}: {path.resolve()}", highlight=False, soft_wrap=True)
    return 0


def _sample(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    if arguments.dry_run:
        return print_config(config)
    if arguments.num_prompts < 1:
        raise ConfigError(f"--num-prompts is {arguments.num_prompts}; give at least 1")
    from cong.lab.samples_view import sample_pair
    from cong.report import samples_to_rich

    cache, _ = _prepare(config)
    samples = sample_pair(config.lab, cache, arguments.num_prompts)
    Console().print(samples_to_rich(samples))
    return 0


def _experiment(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    if arguments.dry_run:
        return print_config(config)
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds is {arguments.seeds}; give at least 1")
    require_installed("report", "matplotlib", "jinja2")
    from cong.files import write_file
    from cong.lab.experiment.claims import judge_claims
    from cong.lab.experiment.experiment import claims_of, run_experiment
    from cong.lab.experiment.page import experiment_page
    from cong.lab.experiment.tables import terminal_tables
    from cong.report import to_rich, write_html, write_markdown

    cache, _ = _prepare(config)
    result = run_experiment(config.lab, cache, arguments.seeds)
    verdicts = judge_claims(claims_of(config.lab), result.seeds)
    console = Console()
    for table in terminal_tables(result, verdicts):
        console.print(to_rich(table))
    page = experiment_page(result, verdicts)
    html, stored = config.output_dir / "experiment.html", arguments.json or config.output_dir / "experiment.json"
    files = {"results": stored, "report": html} | ({"page": arguments.docs} if arguments.docs else {})
    write_file(stored, (result.model_dump_json(indent=1) + "\n").encode())
    write_html(page, html)
    if arguments.docs:
        write_markdown(page, arguments.docs)
    failed = [verdict.claim.statement for verdict in verdicts if verdict.claim.is_required and not verdict.holds]
    for statement in failed:
        console.print(f"does not hold: {statement}", style="bold red")
    for name, path in files.items():
        console.print(f"{name}: {path.resolve()}", highlight=False, soft_wrap=True)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    if arguments.dry_run:
        return print_config(config)
    from cong.lab.export import export_world

    cache, _ = _prepare(config)
    for name, path in export_world(config.lab, cache, arguments.output_dir).items():
        print(f"{name}: {path}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    config = resolve_config(arguments)
    if arguments.dry_run:
        return print_config(config)
    from cong.lab.shipping import build_shipped, check_shipped

    _prepare(config)
    console = Console()
    if not arguments.check:
        for folder in build_shipped(config.lab):
            num_bytes = sum(path.stat().st_size for path in folder.iterdir())
            console.print(f"{folder.name}: {num_bytes / 1e6:.2f} MB in {folder}", highlight=False, soft_wrap=True)
        return 0
    is_sound = True
    for comparison in check_shipped(config.lab):
        is_sound &= comparison.is_within_tolerance
        verdict = "identical bit for bit" if comparison.is_identical else "not identical"
        verdict += ", within tolerance" if comparison.is_within_tolerance else ", OUT OF TOLERANCE"
        numbers = json.dumps(
            {
                "largest weight difference": comparison.largest_weight_difference,
                "gold reward, shipped and rebuilt": comparison.rewards,
                "nats per token, shipped and rebuilt": comparison.losses,
            }
        )
        problem = f"; {comparison.problem}" if comparison.problem else ""
        console.print(f"{comparison.size}: {verdict}{problem}\n  {numbers}", highlight=False, soft_wrap=True)
    return 0 if is_sound else 1


def _add(actions: Commands, name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=about, description=about)
    add_config_options(parser)
    parser.set_defaults(run=run)
    return parser


def add_lab_commands(commands: Commands) -> None:
    """Declare `cong lab ...`."""
    parser = commands.add_parser("lab", help="the tiny world in which the whole method is made and measured")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    demo = _add(actions, "demo", _demo, "run the method from end to end on one seed, and report what came out")
    demo.add_argument("--output-dir", type=Path, metavar="FOLDER", help="where the report and the results go")
    sample = _add(actions, "sample", _sample, "show samples of base, aligned and contrast, side by side")
    sample.add_argument("--num-prompts", type=int, default=6, metavar="N")
    experiment = _add(actions, "experiment", _experiment, "measure every claim over several seeds")
    experiment.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds, from lab.seed upwards")
    experiment.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    experiment.add_argument("--docs", type=Path, metavar="FILE", help="also write the results page as Markdown")
    export = _add(actions, "export", _export, "write the world's networks, prompts and preferences as files")
    export.add_argument("--output-dir", type=Path, default=Path("runs/lab-world"), metavar="FOLDER")
    build = _add(actions, "build", _build, "make the shipped models again from the seed")
    build.add_argument("--check", action="store_true", help="compare with what is shipped, and change nothing")
