"""The tables about a pipeline itself: what it was given, what it made, what that took, and what it will take."""

from collections.abc import Mapping, Sequence
from typing import Any

from cong.estimate.tables import hours_text, size_text, unstated_text
from cong.pipeline.board import Standing
from cong.pipeline.costs import Cost
from cong.pipeline.forecast import Forecast
from cong.pipeline.stage import Product
from cong.report import Cell, Column, Table

_MOST_FAILURES = 50
_SHORT = 12
"""Characters of a fingerprint that tables show."""


def given_table(given: Mapping[str, Product]) -> Table:
    """What was given, by content."""
    rows: list[list[Cell]] = [
        [name, product.location, product.fingerprint[: _SHORT + 3]] for name, product in given.items()
    ]
    columns = [Column("given", "left"), Column("where", "left"), Column("content", "left")]
    return Table("What the pipeline was given", columns, rows)


def stages_table(stages: Sequence[tuple[Standing, Cost]]) -> Table:
    """What every stage was made from."""
    rows: list[list[Cell]] = []
    for standing, _ in stages:
        marker, folder = standing.marker, standing.folder
        assert marker is not None, "a report is made of what is done"
        assert folder is not None, "a report is made of what is done"
        taken = ", ".join(dict.fromkeys(standing.stage.inputs.values()))
        rows.append([standing.stage.name, standing.stage.about, taken, _amount(marker.facts), folder.name[:_SHORT]])
    columns = [
        Column("stage", "left"),
        Column("what it does", "left"),
        Column("from", "left"),
        Column("amount", "left"),
        Column("recipe", "left"),
    ]
    return Table(
        "Stages", columns, rows, caption="A stage runs again where its recipe or the content of an input changes."
    )


def _amount(facts: Mapping[str, Any]) -> str:
    if "num_records" in facts:
        cut = int(facts["num_records"]) - int(facts["num_whole"])
        return f"{int(facts['num_records']):,} samples" + (f", {cut} cut off" if cut else "")
    return f"{int(facts['num_steps']):,} steps" if "num_steps" in facts else ""


def failures_table(failures: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Prompts that were given up, and why."""
    rows: list[list[Cell]] = [
        [stage, str(line.get("prompt_id", line.get("where", ""))), str(line["error"]), str(line["reason"])]
        for stage, line in failures[:_MOST_FAILURES]
    ]
    columns = [Column("stage", "left"), Column("prompt", "left"), Column("error", "left"), Column("reason", "left")]
    more = f"The first {_MOST_FAILURES} of {len(failures)}." if len(failures) > _MOST_FAILURES else ""
    return Table("Prompts without samples", columns, rows, caption=more)


def bottleneck(stages: Sequence[tuple[Standing, Cost]]) -> str:
    """Which stage took most, and on what."""
    total_s = sum(cost.seconds for _, cost in stages)
    slowest = max((cost for _, cost in stages), key=lambda cost: cost.seconds)
    share = slowest.seconds / total_s if total_s else 0.0
    on = f", most of it on {slowest.bottleneck}" if slowest.bottleneck else ""
    return (
        f"The stages took {total_s:,.1f} s in all. The bottleneck is {slowest.name}: {slowest.seconds:,.1f} s, "
        f"{share:.0%} of it{on}."
    )


def cost_table(stages: Sequence[tuple[Standing, Cost]]) -> Table:
    """Time and tokens of every stage."""
    total_s = sum(cost.seconds for _, cost in stages)
    rows: list[list[Cell]] = [
        [
            cost.name,
            cost.seconds,
            cost.seconds / total_s if total_s else None,
            cost.num_tokens,
            cost.tokens_per_s,
            cost.bottleneck,
        ]
        for _, cost in stages
    ]
    columns = [
        Column("stage", "left"),
        Column("seconds", format=",.1f"),
        Column("share", format=".0%"),
        Column("tokens"),
        Column("tokens/s", format=",.0f"),
        Column("most time on", "left"),
    ]
    caption = "Seconds include starting; those of attempts that were killed are not known."
    return Table("Time and tokens", columns, rows, caption=caption)


def forecast_table(forecasts: Sequence[Forecast], methods: Sequence[str]) -> Table:
    """What the stages for these methods will take, and what that comes to."""
    rows: list[list[Cell]] = [_forecast_row(each) for each in forecasts]
    if any(each.estimates for each in forecasts):
        device_hours, hours = sum(each.device_hours for each in forecasts), sum(each.hours for each in forecasts)
        disk = size_text(sum(each.disk_bytes for each in forecasts))
        rows.append(["all", "one after another", None, hours_text(device_hours), hours_text(hours), None, disk])
    columns = [
        Column("stage", "left"),
        Column("amount", "left"),
        Column("on", "left"),
        Column("device hours"),
        Column("time"),
        Column("memory of a device"),
        Column("disk"),
    ]
    return Table(f"About what the stages for {', '.join(methods)} take", columns, rows, caption=_caption(forecasts))


def _forecast_row(each: Forecast) -> list[Cell]:
    on = each.machines
    if on is None:
        return [each.stage.name, each.amount, None, None, None, None, None]
    return [
        each.stage.name,
        each.amount,
        f"{on.num_devices} x {on.accelerator.name}",
        hours_text(each.device_hours),
        hours_text(each.hours),
        size_text(each.device_bytes) + ("" if each.does_fit else ", too much"),
        size_text(each.disk_bytes),
    ]


def _caption(forecasts: Sequence[Forecast]) -> str:
    on = next((each.machines for each in forecasts if each.machines is not None), None)
    if on is None:
        return "Hours, memory and disk need estimate.accelerator, such as H100."
    return (
        f"Assumes {on.bandwidth_share:.0%} of a device's bandwidth and {on.sampling_operations_share:.0%} of its "
        f"arithmetic where samples are drawn, {on.training_operations_share:.0%} of it where networks are trained. "
        "Judging, loading, communication buffers, and waiting for machines come on top. Disk counts samples before "
        "compression, checkpoints while they are kept, and every network that is made."
    ) + unstated_text(size for each in forecasts for one in each.estimates for size in one.unstated)
