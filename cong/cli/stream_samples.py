"""Actions of `cong stream` on the samples in it: follow and show them, their statistics, and taking them elsewhere."""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cong.cli.stream_arguments import console, count_of, opened, read_settings
from cong.config.loading import check
from cong.config.stream import FollowSettings, ReadSettings, SampleFilter
from cong.errors import StreamCorrupt, StreamError
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
from cong.stream import Cursor, Draw, Lane, Place, Span, Store, StreamReader, to_records
from cong.stream.export import export
from cong.stream.identity import require_identity
from cong.stream.index import KeyIndex, index_cache
from cong.stream.listing import list_stream
from cong.stream.statistics import SampleFacts, sample_facts

_EXCERPT_CHARS = 60
_PLACE = re.compile(r"(?P<writer>.+)-(?P<epoch>\d{6}):(?P<row>\d{1,12})")
_TAIL_COLUMNS = ("key", "kind", "finish_reason", "num_tokens", "implicit_reward_mean", "completion_text")


def tail(arguments: argparse.Namespace) -> int:
    """The last records of each writer, and new ones as they come."""
    store = opened(arguments)
    if arguments.num < 0:
        raise StreamError(f"--num is {arguments.num}; give 0 or more records per writer")
    given = {"poll_s": arguments.poll, "idle_timeout_s": arguments.idle_timeout}
    follow = check(FollowSettings, given, "command line") if arguments.follow else None
    settings = ReadSettings(on_damage="skip", is_deduplicated=False, follow=follow)
    reader = StreamReader(store, settings)
    listing = reader.listing
    damage: dict[str, None] = {}
    for lane in listing.lanes.values():
        stop = lane.segments[-1].stop_row if lane.segments else 0
        rows = [row for row in range(max(0, stop - arguments.num), stop) if lane.segment_of(row)]
        if not rows:
            continue
        try:
            _print_rows(reader, _rows_of(lane.lane, rows, reader))
        except StreamCorrupt:
            # One by one: damage is told, and hides no row that is whole.
            for row in rows:
                try:
                    _print_rows(reader, _rows_of(lane.lane, [row], reader))
                except StreamCorrupt as error:
                    damage.setdefault(str(error))
    for told in damage:
        print(f"cong: {told}", file=sys.stderr)
    if follow is not None:
        ends = tuple((lane.lane, lane.segments[-1].stop_row) for lane in listing.lanes.values() if lane.segments)
        follower = StreamReader(store, settings, replace(reader.cursor, admitted=ends))
        while (drawn := follower.draw(1)) is not None:
            _print_rows(follower, drawn)
    return 0


def _rows_of(lane: Lane, rows: Sequence[int], reader: StreamReader) -> Draw:
    at = np.array(rows, dtype=np.int64)
    return Draw((lane,), np.zeros_like(at), at, reader.cursor)


def _print_rows(reader: StreamReader, draw: Draw) -> None:
    for row, number, at in zip(
        reader.fetch(draw, _TAIL_COLUMNS).to_pylist(), draw.lane_numbers.tolist(), draw.rows.tolist(), strict=True
    ):
        print(_line(row, f"{draw.lanes[number]}:{at}"), flush=True)


def _line(row: dict[str, Any], place: str) -> str:
    reward = row["implicit_reward_mean"]
    # What a network has drawn must not steer the terminal.
    printable = (character if character.isprintable() else " " for character in row["completion_text"])
    text = " ".join("".join(printable).split())
    excerpt = text if len(text) <= _EXCERPT_CHARS else text[: _EXCERPT_CHARS - 1] + "…"
    return (
        f"{row['key'][:12]}  {place:<24} {row['kind']:<11} {row['finish_reason']:<9} {row['num_tokens']:>6} tokens  "
        f"{'   –  ' if reward is None else f'{reward:+.3f}'}  {excerpt}"
    )


def show(arguments: argparse.Namespace) -> int:
    """One record."""
    store = opened(arguments)
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


def stats(arguments: argparse.Namespace) -> int:
    """What the samples are like."""
    if arguments.png and arguments.png.suffix not in (".png", ".svg"):
        raise StreamError(f"--png is {arguments.png}; give a name that ends in .png, or in .svg")
    store = opened(arguments)
    facts = sample_facts(StreamReader(store, read_settings(arguments)))
    if not facts.num_records:
        raise StreamError(f"{store.location} has no record that passes the filter")
    heads = sum(facts.head_sizes.values())
    numbers: list[tuple[str, float | int | str | None]] = [
        ("records", facts.num_records),
        ("tokens", facts.num_tokens),
        ("mean length", facts.num_tokens / facts.num_records),
        ("median length", float(np.median(facts.lengths.values))),
        ("mean implicit reward per token", facts.rewards.mean),
        ("mean head-set size", sum(size * n for size, n in facts.head_sizes.items()) / heads if heads else None),
        *((f"finish reason {name}", count) for name, count in facts.finish_reasons.most_common()),
        *((f"kind {name}", count) for name, count in facts.kinds.most_common()),
        ("sampling parameters", len(facts.parameters)),
        ("sets of networks", len(facts.networks)),
    ]
    table = Table(f"Samples of {store.location}", [Column("what", "left"), Column("value")], numbers)
    # The title is wider than the table.
    print(table.title)
    console().print(to_rich(replace(table, title="")))
    _draw(arguments, store, facts, table)
    return 0


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


def _bars(counts: Counter[str], label: str) -> BarPlot:
    total = max(1, sum(counts.values()))
    bars = [Bar(name, 100.0 * count / total) for name, count in counts.most_common(12)]
    return BarPlot(bars, Axis(label, "%"), format=".1f")


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


def export_samples(arguments: argparse.Namespace) -> int:
    """Training data that other programs read."""
    store = opened(arguments)
    rejected = None
    settings = read_settings(arguments)
    if arguments.form == "preference":
        other = opened(argparse.Namespace(**{**vars(arguments), "stream": arguments.rejected or arguments.stream}))
        settings = settings.model_copy(
            update={"filter": settings.filter.model_copy(update={"kinds": ("contrastive",)})}
        )
        rejected = StreamReader(
            other, ReadSettings(filter=SampleFilter(kinds=("plain",)), on_damage=settings.on_damage)
        )
    reader = StreamReader(store, settings)
    done = export(reader, arguments.target, arguments.form, getattr(arguments, "as"), rejected, arguments.licence)
    read, written = count_of(done.num_records, "record"), count_of(done.num_rows, "row")
    print(f"read {read}, wrote {written} to {arguments.target}")
    if done.num_rows < done.num_records:
        num_alone = done.num_records - done.num_rows
        print(f"left out: {count_of(num_alone, 'contrastive sample')} without a plain one of the same prompt")
    if done.num_cut:
        print(
            f"cut off by the limit of length: {count_of(done.num_cut, 'sample')}, which their text does not show; "
            "whoever trains on it puts an end behind it, and --finish-reason stop leaves them out"
        )
    _note_skipped(reader.cursor)
    return 0


def _note_skipped(cursor: Cursor) -> None:
    for span in cursor.skipped:
        print(f"cong: left out as damaged: {span}", file=sys.stderr)
