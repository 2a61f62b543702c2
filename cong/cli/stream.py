"""`cong stream`: its command line, and its actions on the log itself: list, check, merge, remove.

Those on the samples in it are in `stream_samples`.
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from cong.cli.config import Commands
from cong.cli.stream_arguments import add_filter_options, console, count_of, named, opened, size_of
from cong.cli.stream_samples import export_samples, show, stats, tail
from cong.config.loading import check
from cong.config.stream import WriteSettings
from cong.errors import StreamError
from cong.report import Column, Table, to_rich
from cong.stream import Cursor, compact, retain, verify
from cong.stream.filesystem import LocalFileSystem
from cong.stream.identity import require_identity
from cong.stream.listing import list_stream
from cong.stream.names import JOURNAL, SEGMENTS
from cong.stream.statistics import lane_facts
from cong.stream.store import LocalStore
from cong.wording import with_remedy


def add_stream_commands(commands: Commands) -> None:
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

    last = actions.add_parser(
        "tail", parents=[where], help="the last records of each writer, and new ones as they come"
    )
    last.add_argument("-n", "--num", type=int, default=5, metavar="N", help="records per writer (5)")
    last.add_argument("-f", "--follow", action="store_true", help="go on until every writer has closed")
    last.add_argument(
        "--idle-timeout", type=float, default=3600.0, metavar="S", help="stop after S seconds without news (3600)"
    )
    last.add_argument("--poll", type=float, default=0.5, metavar="S", help="look every S seconds (0.5)")
    last.set_defaults(run=tail)

    one = actions.add_parser("show", parents=[where], help="one record as JSON, by its key or its place")
    one.add_argument("key", metavar="KEY", help="the whole key, or the place that tail shows, as writer-000001:12")
    one.set_defaults(run=show)

    proof = actions.add_parser("verify", parents=[where], help="check every byte; exit code 1 and what is wrong")
    proof.add_argument("--journal", default="", metavar="DIR", help="folder of write-ahead files (STREAM/journal)")
    proof.set_defaults(run=_verify)

    tidy = actions.add_parser("compact", parents=[where], help="merge small segments; cursors stay true")
    tidy.add_argument("--rows-per-segment", type=int, default=50_000, metavar="N", help="at most (50000)")
    tidy.add_argument("--bytes-per-segment", type=int, default=256 << 20, metavar="N", help="about at most (256 MiB)")
    tidy.add_argument("--dry-run", action="store_true", help="read what would be merged, and say what would be done")
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

    like = actions.add_parser("stats", parents=[where], help="lengths, rewards, finish reasons and head-set sizes")
    like.add_argument("--png", type=Path, metavar="FILE", help="draw the distributions")
    like.add_argument("--html", type=Path, metavar="FILE", help="write them as a page")
    add_filter_options(like)
    like.set_defaults(run=stats)

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
    add_filter_options(out)
    out.set_defaults(run=export_samples)


def _ls(arguments: argparse.Namespace) -> int:
    store = opened(arguments)
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
            size_of(facts.num_bytes),
            facts.rows_per_s,
            _time(facts.last_published_s),
            f"{facts.num_gaps} ({facts.num_missing_rows} rows)" if facts.num_gaps else "none",
        ]
        for facts in lanes
    ]
    size = size_of(sum(facts.num_bytes for facts in lanes))
    total = f"{count_of(listing.num_rows, 'row')} in {count_of(len(listing.segments), 'segment')}, {size}"
    state = "every writer has closed" if listing.is_ended() else "still open"
    print(f"{store.location}: {total}; {state}")
    console().print(to_rich(Table("", columns, rows)))
    for path in [*listing.unrecognised, *(segment.path for segment in listing.impostors)]:
        print(f"cong: {path} is not what a writer made; run `cong stream verify`", file=sys.stderr)
    return 0


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S") if seconds else "–"


def _verify(arguments: argparse.Namespace) -> int:
    # A damaged identity is reported with all else that is wrong.
    store = named(arguments)
    folder = arguments.journal or (f"{store.root}/{JOURNAL}" if isinstance(store, LocalStore) else "")
    if arguments.journal and not Path(folder).is_dir():
        # Nothing would be found there, and the stream called sound.
        raise StreamError(f"--journal is {folder}, which is no folder; give that of stream.write.journal_dir")
    report = verify(store, (LocalFileSystem(), folder) if folder else None)
    for problem in report.problems:
        rows = f" [{problem.rows}]" if problem.rows is not None else ""
        print(f"{problem.path}: {problem.what}{rows}")
    size = size_of(report.num_bytes)
    print(
        f"{count_of(report.num_rows, 'row')} in {count_of(report.num_segments, 'segment')}, {size}: as written; "
        f"{count_of(len(report.problems), 'problem')}, "
        f"{count_of(report.num_journal_records, 'record')} in journals only, "
        f"{count_of(report.num_leftovers, 'harmless leftover')}"
    )
    return 0 if report.is_sound else 1


def _compact(arguments: argparse.Namespace) -> int:
    given = {"rows_per_segment": arguments.rows_per_segment, "bytes_per_segment": arguments.bytes_per_segment}
    done = compact(opened(arguments), check(WriteSettings, given, "command line"), is_dry_run=arguments.dry_run)
    verb = "would become" if arguments.dry_run else "became"
    stay = "stays" if done.num_before == 1 else "stay"
    what = f"{verb} {done.num_after:,}" if done.num_after < done.num_before else f"{stay}: no neighbours fit into one"
    removed = "" if arguments.dry_run else f"; {count_of(done.num_removed, 'file')} removed"
    print(f"{count_of(done.num_before, 'segment')} {what}{removed}")
    return 0


def _retain(arguments: argparse.Namespace) -> int:
    store = opened(arguments)
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
    size = size_of(sum(sizes.get(segment.path, 0) for segment in done.segments))
    num_left, num_rows_left = len(before.segments) - len(done.segments), before.num_rows - done.num_rows
    print(
        f"{store.location}: {count_of(done.num_rows, 'row')} in {count_of(len(done.segments), 'segment')}, {size}, "
        f"{verb}; {count_of(num_rows_left, 'row')} in {count_of(num_left, 'segment')} stay{'s' * (num_rows_left == 1)}"
    )
    if not done.segments:
        print("no segment lies wholly below every cursor, so every one may still be read")
    return 0


def _read_cursor(path: Path) -> Cursor:
    try:
        return Cursor.from_json(path.read_bytes())
    except OSError as error:
        raise StreamError(f"cannot read the cursor {path}: {with_remedy(error)}") from error
    except StreamError as error:
        raise StreamError(f"{path}: {error}") from error


def _records_read(cursors: Sequence[Cursor]) -> str:
    least, most = min(cursor.num_records for cursor in cursors), max(cursor.num_records for cursor in cursors)
    if least == 0:
        return "its checkpoints go back to the beginning of what it reads"
    return f"its checkpoints lie behind {least:,} to {most:,} records"
