"""Estimates as tables, each with the assumptions that it rests on."""

from collections.abc import Iterable

from cong.estimate.accelerators import Machines
from cong.estimate.sampling import SamplingEstimate
from cong.estimate.training import TrainingEstimate
from cong.report.tables import Cell, Column, Table

_COLUMNS = (Column("what", "left"), Column("estimate"))
_STEPS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size_text(num_bytes: float) -> str:
    """Bytes for people, in powers of 1000."""
    for factor, unit in _STEPS:
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def hours_text(hours: float) -> str:
    """A duration for people."""
    if hours >= 100:
        return f"{hours:,.0f} h"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def unstated_text(sizes: Iterable[str]) -> str:
    """What an estimate rests on that nobody has said; empty where everything was."""
    listed = ", ".join(dict.fromkeys(sizes))
    return f" Not in config.json, and so what transformers takes: {listed}." if listed else ""


def _where(on: Machines) -> str:
    return f"{on.num_devices} x {on.accelerator.name}"


def sampling_table(estimate: SamplingEstimate) -> Table:
    """What sampling takes."""
    on = estimate.machines
    rows = [
        ("networks, lockstep", str(estimate.num_networks)),
        ("samples", f"{estimate.num_samples:,}"),
        ("new tokens", f"{estimate.num_new_tokens:,.0f}"),
        ("weights", f"{estimate.num_parameters:,}"),
        ("weights that a token meets", f"{estimate.num_active:,}"),
        ("weights on each device", size_text(estimate.weights_bytes)),
        ("weights that a step reads", size_text(estimate.read_bytes)),
        ("keys and values of one token", size_text(estimate.cache_bytes_per_token)),
        ("room for keys and values on each device", size_text(estimate.cache_bytes)),
        ("samples at a time on each device", f"{estimate.num_running:,}"),
        ("one step", f"{estimate.step_s * 1000:.1f} ms"),
        ("new tokens per second on each device", f"{estimate.tokens_per_s:,.0f}"),
        ("device hours", hours_text(estimate.device_hours)),
        ("time", hours_text(estimate.hours)),
        ("stream on disk, before compression", size_text(estimate.stream_bytes)),
    ]
    caption = (
        f"Assumes {on.bandwidth_share:.0%} of the memory's bandwidth and {on.sampling_operations_share:.0%} of the "
        "arithmetic that the maker states; a step reads every key it looks at and every weight once, of experts those "
        "that its samples are expected to meet if each expert is as likely as any other. Loading, and waiting for "
        "machines, come on top."
    ) + unstated_text(estimate.unstated)
    return Table(f"Sampling on {_where(on)}", _COLUMNS, rows, caption)


def training_table(estimate: TrainingEstimate) -> Table:
    """What training takes."""
    on = estimate.machines
    rows: list[tuple[str, Cell]] = [
        ("weights", f"{estimate.num_parameters:,}"),
        ("weights that a token meets", f"{estimate.num_active:,}"),
        ("weights that are trained", f"{estimate.num_trained:,}"),
        ("optimiser steps", f"{estimate.num_steps:,}"),
        ("tokens", f"{estimate.num_tokens:,.0f}"),
        ("arithmetic", f"{estimate.operations:.2e} operations"),
        ("device hours", hours_text(estimate.device_hours)),
        ("time", hours_text(estimate.hours)),
        ("weights, gradients and optimiser on each device", size_text(estimate.weights_bytes)),
        ("activations of a full micro-batch", size_text(estimate.activations_bytes)),
        ("each device at its fullest", size_text(estimate.device_bytes)),
        ("fits into a device", estimate.does_fit),
        ("host memory for each device", size_text(estimate.host_bytes)),
        ("one checkpoint", size_text(estimate.checkpoint_bytes)),
        ("disk for checkpoints and the result", size_text(estimate.disk_bytes)),
    ]
    caption = (
        f"Assumes {on.training_operations_share:.0%} of the arithmetic that the maker states, and that "
        f"{on.usable_memory_share:.0%} of a device's memory can be used. Communication buffers, validation, "
        "loading and saving come on top."
    ) + unstated_text(estimate.unstated)
    return Table(f"Training on {_where(on)}", _COLUMNS, rows, caption)
