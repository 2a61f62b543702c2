"""`cong stream`: look at a sample stream, check it, tidy it, and take it elsewhere."""

import argparse
import datetime
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from cong.config.loading import check
from cong.config.stream import FollowSettings, ReadSettings, SampleFilter, WriteSettings
from cong.errors import StreamError
from cong.report import (
    Axis,
    Bar,
    BarPlot,
    Column,
    Figure,
    Histogram,
    Page,
    Panels,
    Plot,
    Section,
    Table,
    save_plot,
    to_rich,
    write_html,
)
from cong.stream import (
    Cursor,
    Draw,
    Lane,
    Place,
    Span,
    Store,
    StreamReader,
    compact,
    open_store,
    retain,
    to_records,
    verify,
)
from cong.stream.export import export
from cong.stream.filesystem import LocalFileSystem
from cong.stream.identity import require_identity
from cong.stream.index import KeyIndex, index_cache
from cong.stream.listing import list_stream
from cong.stream.names import JOURNAL, SEGMENTS
from cong.stream.statistics import SampleFacts, lane_facts, sample_facts
from cong.stream.store import LocalStore

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXCERPT_CHARS = 60
_PLACE = re.compile(r"(?P<writer>.+)-(?P<epoch>\d{6}):(?P<row>\d{1,12})")
_TAIL_COLUMNS = ("key", "kind", "finish_reason", "num_tokens", "implicit_reward_mean", "completion_text")


def _store(arguments: argparse.Namespace) -> Store:
    options: dict[str, Any] = {}
    for text in arguments.storage_option:
        name, equals, value = text.partition("=")
        if not equals:
            raise StreamError(f"--storage-option {text!r}: write it as NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    store = open_store(arguments.stream, options)
    require_identity(store)
    return store


def _settings(arguments: argparse.Namespace) -> ReadSettings:
    return check(
        ReadSettings,
        {
            "filter": {
                "kinds": arguments.kind,
                "finish_reasons": arguments.finish_reason,
                "min_tokens": arguments.min_tokens,
                "max_tokens": arguments.max_tokens,
                "min_reward_mean": arguments.min_reward,
                "max_reward_mean": arguments.max_reward,
            },
            "on_damage": "skip" if arguments.skip_damage else "error",
        },
        "command line",
    )


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S") if seconds else "–"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _console() -> Console:
    # A pipe has no width; tables are then as wide as they need.
    return Console() if sys.stdout.isatty() else Console(width=160)


def _ls(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    listing, lanes = lane_facts(store)
    columns = [
        Column("writer", "left"),
        Column("state", "left"),
        *(Column(name) for name in ("segments", "rows", "size")),
        Column("rows/s", format=",.1f"),
        Column("last published (UTC)", "left"),
        Column("gaps", "left"),
    ]
    rows = [
        [
            str(facts.lane),
            facts.state,
            facts.num_segments,
            facts.num_rows,
            _size(facts.num_bytes),
            facts.rows_per_s,
            _time(facts.last_published_s),
            f"{facts.num_gaps} ({facts.num_missing_rows} rows)" if facts.num_gaps else "none",
        ]
        for facts in lanes
    ]
    size = _size(sum(facts.num_bytes for facts in lanes))
    total = f"{_count(listing.num_rows, 'row')} in {_count(len(listing.segments), 'segment')}, {size}"
    state = "every writer has closed" if listing.is_ended() else "still open"
    print(f"{store.location}: {total}; {state}")
    _console().print(to_rich(Table("", columns, rows)))
    for path in [*listing.unrecognised, *(segment.path for segment in listing.impostors)]:
        print(f"cong: {path} is not what a writer made; run `cong stream verify`", file=sys.stderr)
    return 0


def _line(row: dict[str, Any], place: str) -> str:
    reward = row["implicit_reward_mean"]
    text = " ".join(row["completion_text"].split())
    excerpt = text if len(text) <= _EXCERPT_CHARS else text[: _EXCERPT_CHARS - 1] + "…"
    return (
        f"{row['key'][:12]}  {place:<24} {row['kind']:<11} {row['finish_reason']:<9} {row['num_tokens']:>6} tokens  "
        f"{'   –  ' if reward is None else f'{reward:+.3f}'}  {excerpt}"
    )


def _print_rows(reader: StreamReader, draw: Draw) -> None:
    for row, number, at in zip(
        reader.fetch(draw, _TAIL_COLUMNS).to_pylist(), draw.lane_numbers.tolist(), draw.rows.tolist(), strict=True
    ):
        print(_line(row, f"{draw.lanes[number]}:{at}"), flush=True)


def _tail(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    if arguments.num < 0:
        raise StreamError(f"--num is {arguments.num}; give 0 or more records per writer")
    given = {"poll_s": arguments.poll, "idle_timeout_s": arguments.idle_timeout}
    follow = check(FollowSettings, given, "command line") if arguments.follow else None
    settings = ReadSettings(on_damage="skip", is_deduplicated=False, follow=follow)
    reader = StreamReader(store, settings)
    listing = reader.listing
    for lane in listing.lanes.values():
        stop = lane.segments[-1].stop_row if lane.segments else 0
        rows = [row for row in range(max(0, stop - arguments.num), stop) if lane.segment_of(row)]
        if rows:
            at = np.array(rows, dtype=np.int64)
            _print_rows(reader, Draw((lane.lane,), np.zeros_like(at), at, reader.cursor))
    if follow is not None:
        ends = tuple((lane.lane, lane.segments[-1].stop_row) for lane in listing.lanes.values() if lane.segments)
        follower = StreamReader(store, settings, replace(reader.cursor, admitted=ends))
        while (drawn := follower.draw(1)) is not None:
            _print_rows(follower, drawn)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    place = _place(store, arguments.key)
    reader = StreamReader(store, ReadSettings(on_damage="skip", is_deduplicated=False))
    number, row = np.zeros(1, dtype=np.int64), np.array([place.row], dtype=np.int64)
    (record,) = to_records(reader.fetch(Draw((place.lane,), number, row, reader.cursor)))
    print(f"{Span(place.lane, place.row, place.row + 1)}", file=sys.stderr)
    print(json.dumps(record.model_dump(mode="json"), ensure_ascii=False, indent=2))
    return 0


def _place(store: Store, text: str) -> Place:
    """Where a record lies that is named by its key, or by its place as `tail` shows it."""
    listing = list_stream(store)
    found = _PLACE.fullmatch(text)
    if found is not None:
        place = Place(Lane(found["writer"], int(found["epoch"])), int(found["row"]))
        lane = listing.lanes.get(place.lane)
        if lane is not None and lane.segment_of(place.row):
            return place
        rows = f"its rows are {lane.first_row} to {lane.stop_row - 1}" if lane and lane.num_rows else "it has no rows"
        raise StreamError(f"{store.location} has no row {place.row} of {place.lane}; {rows}")
    index = KeyIndex(store, require_identity(store), index_cache(store, ""))
    index.refresh(listing)
    by_key = index.find(text)
    if by_key is None:
        raise StreamError(
            f"{store.location} has no record with key {text!r}; give the whole key, or the place that `tail` shows, as "
            "writer-000001:12"
        )
    return by_key


def _verify(arguments: argparse.Namespace) -> int:
    store = _store_unchecked(arguments)
    folder = arguments.journal or (f"{store.root}/{JOURNAL}" if isinstance(store, LocalStore) else "")
    report = verify(store, (LocalFileSystem(), folder) if folder else None)
    for problem in report.problems:
        rows = f" [{problem.rows}]" if problem.rows is not None else ""
        print(f"{problem.path}: {problem.what}{rows}")
    print(
        f"{_count(report.num_rows, 'row')} in {_count(report.num_segments, 'segment')}, {_size(report.num_bytes)}: as "
        f"written; {_count(len(report.problems), 'problem')}, {_count(report.num_journal_records, 'record')} in "
        f"journals only, {_count(report.num_leftovers, 'harmless leftover')}"
    )
    return 0 if report.is_sound else 1


def _store_unchecked(arguments: argparse.Namespace) -> Store:
    """For the command that reports a damaged identity instead of stopping at it."""
    try:
        return _store(arguments)
    except StreamError:
        return open_store(arguments.stream)


def _compact(arguments: argparse.Namespace) -> int:
    given = {"rows_per_segment": arguments.rows_per_segment, "bytes_per_segment": arguments.bytes_per_segment}
    done = compact(_store(arguments), check(WriteSettings, given, "command line"), is_dry_run=arguments.dry_run)
    verb = "would become" if arguments.dry_run else "became"
    what = f"{verb} {done.num_after:,}" if done.num_after < done.num_before else "stay: no neighbours fit into one"
    print(f"{_count(done.num_before, 'segment')} {what}; {_count(done.num_removed, 'file')} removed")
    return 0


def _retain(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    stream = require_identity(store)
    cursors = [_read_cursor(path) for path in arguments.cursors]
    for run in arguments.runs:
        # Only runs need the training room, and with it torch.
        from cong.train.resuming import cursors_in_use

        found = cursors_in_use(run)
        if found[0].stream != stream:
            raise StreamError(f"{run} trains on stream {found[0].stream}, and {store.location} is stream {stream}")
        print(f"{run}: {_records_read(found)}")
        cursors += found
    if not cursors:
        raise StreamError(
            "nothing says which rows are still needed; give --run with the output_dir of every training run that reads "
            "this stream, or --cursor"
        )
    sizes = {f"{SEGMENTS}/{entry.name}": entry.num_bytes for entry in store.entries(SEGMENTS)}
    before = list_stream(store)
    done = retain(store, cursors, is_dry_run=arguments.dry_run)
    verb = "would be removed" if arguments.dry_run else "removed"
    size = _size(sum(sizes.get(segment.path, 0) for segment in done.segments))
    num_left = len(before.segments) - len(done.segments)
    print(
        f"{store.location}: {_count(done.num_rows, 'row')} in {_count(len(done.segments), 'segment')}, {size}, {verb}; "
        f"{_count(before.num_rows - done.num_rows, 'row')} in {_count(num_left, 'segment')} stay"
    )
    if not done.segments:
        print("no segment lies wholly below every cursor, so every one may still be read")
    return 0


def _read_cursor(path: Path) -> Cursor:
    try:
        return Cursor.from_json(path.read_bytes())
    except OSError as error:
        raise StreamError(f"cannot read the cursor {path}: {error.strerror or error}") from error
    except StreamError as error:
        raise StreamError(f"{path}: {error}") from error


def _records_read(cursors: Sequence[Cursor]) -> str:
    least, most = min(cursor.num_records for cursor in cursors), max(cursor.num_records for cursor in cursors)
    if least == 0:
        return "its checkpoints go back to the beginning of what it reads"
    return f"its checkpoints lie behind {least:,} to {most:,} records"


def _bars(counts: Counter[str], label: str) -> BarPlot:
    total = max(1, sum(counts.values()))
    bars = [Bar(name, 100.0 * count / total) for name, count in counts.most_common(12)]
    return BarPlot(bars, Axis(label, "%"), format=".1f")


def _plots(facts: SampleFacts) -> list[Plot]:
    plots: list[Plot] = [Histogram({"samples": facts.lengths.values}, Axis("length", "tokens"), "Lengths")]
    if facts.rewards.values:
        axis = Axis("implicit reward per token", "nats")
        plots.append(Histogram({"samples": facts.rewards.values}, axis, "Implicit rewards"))
    plots.append(replace(_bars(facts.finish_reasons, "share of samples"), title="Finish reasons"))
    sizes: Counter[str] = Counter()
    for low, high in ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, 2**31)):
        count = sum(number for size, number in facts.head_sizes.items() if low <= size <= high)
        sizes[str(low) if low == high else f"{low} to {high}" if high < 2**31 else f"{low} and more"] = count
    ordered = [Bar(name, 100.0 * count / max(1, sum(sizes.values()))) for name, count in sizes.items()]
    plots.append(BarPlot(ordered, Axis("share of tokens", "%"), title="Head-set sizes", format=".1f"))
    return plots


def _stats(arguments: argparse.Namespace) -> int:
    if arguments.png and arguments.png.suffix not in (".png", ".svg"):
        raise StreamError(f"--png is {arguments.png}; give a name that ends in .png, or in .svg")
    store = _store(arguments)
    facts = sample_facts(StreamReader(store, _settings(arguments)))
    if not facts.num_records:
        raise StreamError(f"{store.location} has no record that passes the filter")
    heads = sum(facts.head_sizes.values())
    numbers: list[tuple[str, float | int | str | None]] = [
        ("records", facts.num_records),
        ("tokens", facts.num_tokens),
        ("mean length", facts.num_tokens / facts.num_records),
        ("median length", float(np.median(facts.lengths.values))),
        ("mean implicit reward per token", float(np.mean(facts.rewards.values)) if facts.rewards.values else None),
        ("mean head-set size", sum(size * n for size, n in facts.head_sizes.items()) / heads if heads else None),
        *((f"finish reason {name}", count) for name, count in facts.finish_reasons.most_common()),
        *((f"kind {name}", count) for name, count in facts.kinds.most_common()),
        ("sampling parameters", len(facts.parameters)),
        ("sets of networks", len(facts.networks)),
    ]
    table = Table(f"Samples of {store.location}", [Column("what", "left"), Column("value")], numbers)
    _console().print(to_rich(table))
    try:
        _draw(arguments, store, facts, table)
    except OSError as error:
        raise StreamError(f"cannot write {error.filename}: {error.strerror or error}") from error
    return 0


def _draw(arguments: argparse.Namespace, store: Store, facts: SampleFacts, table: Table) -> None:
    plots = _plots(facts)
    if arguments.png:
        save_plot(Panels(plots, num_columns=2), arguments.png)  # type: ignore[arg-type]
        print(f"wrote {arguments.png}")
    if arguments.html:
        figures = [Figure(plot, getattr(plot, "title", "")) for plot in plots]
        page = Page(
            f"Samples of {store.location}", "", [Section("Numbers", [table]), Section("Distributions", figures)]
        )
        write_html(page, arguments.html)
        print(f"wrote {arguments.html}")


def _export(arguments: argparse.Namespace) -> int:
    store = _store(arguments)
    rejected = None
    settings = _settings(arguments)
    if arguments.form == "preference":
        other = _store(argparse.Namespace(**{**vars(arguments), "stream": arguments.rejected or arguments.stream}))
        settings = settings.model_copy(
            update={"filter": settings.filter.model_copy(update={"kinds": ("contrastive",)})}
        )
        rejected = StreamReader(
            other, ReadSettings(filter=SampleFilter(kinds=("plain",)), on_damage=settings.on_damage)
        )
    reader = StreamReader(store, settings)
    done = export(reader, arguments.target, arguments.form, getattr(arguments, "as"), rejected, arguments.licence)
    read, written = _count(done.facts.num_records, "record"), _count(done.num_rows, "row")
    print(f"read {read}, wrote {written} to {arguments.target}")
    if done.num_rows < done.facts.num_records:
        num_alone = done.facts.num_records - done.num_rows
        print(f"left out: {_count(num_alone, 'contrastive sample')} without a plain one of the same prompt")
    _note_skipped(reader.cursor)
    return 0


def _note_skipped(cursor: Cursor) -> None:
    for span in cursor.skipped:
        print(f"cong: left out as damaged: {span}", file=sys.stderr)


def _add_filter_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which records")
    group.add_argument("--kind", action="append", default=[], help="contrastive or plain; may be repeated (all)")
    group.add_argument("--finish-reason", action="append", default=[], help="such as stop; may be repeated (all)")
    group.add_argument("--min-tokens", type=int, default=0, metavar="N")
    group.add_argument("--max-tokens", type=int, default=0, metavar="N", help="0 = no limit")
    group.add_argument("--min-reward", type=float, metavar="R", help="lowest implicit reward per token")
    group.add_argument("--max-reward", type=float, metavar="R", help="highest implicit reward per token")
    group.add_argument("--skip-damage", action="store_true", help="leave damaged rows out and name them")


def add_stream_commands(commands: "Commands") -> None:
    """Declare `cong stream ...`."""
    parser = commands.add_parser("stream", help="list, follow, check, tidy and export a stream of samples")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("stream", metavar="STREAM", help="folder, or URL such as s3://bucket/prefix")
    where.add_argument(
        "--storage-option", action="append", default=[], metavar="NAME=VALUE", help="for the URL's store"
    )

    ls = actions.add_parser("ls", parents=[where], help="writers with their segments, rows, sizes, rates and gaps")
    ls.set_defaults(run=_ls)

    tail = actions.add_parser(
        "tail", parents=[where], help="the last records of each writer, and new ones as they come"
    )
    tail.add_argument("-n", "--num", type=int, default=5, metavar="N", help="records per writer (5)")
    tail.add_argument("-f", "--follow", action="store_true", help="go on until every writer has closed")
    tail.add_argument(
        "--idle-timeout", type=float, default=3600.0, metavar="S", help="stop after S seconds without news"
    )
    tail.add_argument("--poll", type=float, default=0.5, metavar="S", help="look every S seconds (0.5)")
    tail.set_defaults(run=_tail)

    show = actions.add_parser("show", parents=[where], help="one record as JSON, by its key or its place")
    show.add_argument("key", metavar="KEY", help="the whole key, or the place that tail shows, as writer-000001:12")
    show.set_defaults(run=_show)

    proof = actions.add_parser("verify", parents=[where], help="check every byte; exit code 1 and what is wrong")
    proof.add_argument("--journal", default="", metavar="DIR", help="folder of write-ahead files (STREAM/journal)")
    proof.set_defaults(run=_verify)

    tidy = actions.add_parser("compact", parents=[where], help="merge small segments; cursors stay true")
    tidy.add_argument("--rows-per-segment", type=int, default=50_000, metavar="N")
    tidy.add_argument("--bytes-per-segment", type=int, default=256 << 20, metavar="N")
    tidy.add_argument("--dry-run", action="store_true", help="say what would be done")
    tidy.set_defaults(run=_compact)

    less = actions.add_parser(
        "retain", parents=[where], help="remove what every committed checkpoint of the given runs has passed"
    )
    less.add_argument(
        "--run",
        dest="runs",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="output_dir of a training run; repeat it",
    )
    less.add_argument(
        "--cursor",
        dest="cursors",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="cursor of another reader, as JSON",
    )
    less.add_argument("--dry-run", action="store_true", help="say what would be removed")
    less.set_defaults(run=_retain)

    stats = actions.add_parser("stats", parents=[where], help="lengths, rewards, finish reasons and head-set sizes")
    stats.add_argument("--png", type=Path, metavar="FILE", help="draw the distributions")
    stats.add_argument("--html", type=Path, metavar="FILE", help="write them as a page")
    _add_filter_options(stats)
    stats.set_defaults(run=_stats)

    out = actions.add_parser("export", parents=[where], help="write training data that other programs read")
    out.add_argument("target", type=Path, metavar="TARGET", help="file or folder to make")
    out.add_argument("--form", choices=["prompt-completion", "messages", "preference"], default="prompt-completion")
    out.add_argument(
        "--as", choices=["jsonl", "parquet", "dataset"], default="jsonl", help="dataset: a folder with a card"
    )
    out.add_argument(
        "--rejected", metavar="STREAM", help="preference: its plain samples are the rejected ones (the same stream)"
    )
    out.add_argument("--licence", default="", help="for the dataset card, such as cc-by-4.0")
    _add_filter_options(out)
    out.set_defaults(run=_export)
