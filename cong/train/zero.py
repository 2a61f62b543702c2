"""The settings of a run in the words of DeepSpeed.

What the configuration of a run says is named here and cannot be said otherwise by the user's own DeepSpeed file; the
rest of that file is passed on. Knows DeepSpeed's words and not DeepSpeed: nothing here imports it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cong.config.loading import merge
from cong.config.train import TrainConfig
from cong.errors import ConfigError

MAX_BUCKET_ELEMENTS = 200_000_000
"""Elements of one collective at most; DeepSpeed allocates a buffer of this size, or two."""
STAGE_3_BUCKETS = 16
"""Under stage 3 that buffer stays for the whole run: gradients leave a network in at least so many collectives."""
MAX_PREFETCH_ELEMENTS = 50_000_000
MAX_PERSISTENT_ELEMENTS = 100_000
"""Under stage 3 a tensor smaller than this stays whole on every rank: gathering it would cost more than it saves."""

_DECIDED_BY_LOOP = "the training loop decides it"
_NOT_SUPPORTED = "this trainer does not support it"
REFUSED = {
    # Keys of a DeepSpeed file that would change what a step computes, and why they cannot be honoured.
    "amp": _NOT_SUPPORTED,
    "autotuning": _NOT_SUPPORTED,
    "checkpoint.load_universal": "another number of ranks is noticed and handled without it",
    "compression_training": _NOT_SUPPORTED,
    "curriculum_learning": _DECIDED_BY_LOOP,
    "data_efficiency": _DECIDED_BY_LOOP,
    "data_parallel_size": _NOT_SUPPORTED,
    "elasticity": "another number of ranks is noticed and handled without it",
    "fp16": "precision is float32 or bfloat16",
    "hybrid_engine": _NOT_SUPPORTED,
    "pipeline": _NOT_SUPPORTED,
    "scheduler": "the training loop sets the learning rate of each step",
    "sequence_parallel_size": _NOT_SUPPORTED,
    "tensor_parallel": _NOT_SUPPORTED,
    "torch_autocast": "precision is float32 or bfloat16",
    "train_batch_size": "the number of micro-batches differs from step to step; the training loop counts units itself",
    "zero_optimization.elastic_checkpoint": "another number of ranks is noticed and handled without it",
}


def require_consistent(settings: TrainConfig) -> None:
    """Refuse what no ZeRO stage can do."""
    zero = settings.deepspeed
    where = f"train.deepspeed.zero_stage is {zero.zero_stage}"
    if zero.offload_optimizer and zero.zero_stage == 0:
        raise ConfigError(f"train.deepspeed.offload_optimizer is set and {where}; it needs stage 1, 2 or 3")
    if zero.offload_parameters and zero.zero_stage != 3:
        raise ConfigError(f"train.deepspeed.offload_parameters is set and {where}; it needs stage 3")
    if zero.has_compiled_adam and not zero.offload_optimizer:
        raise ConfigError(
            "train.deepspeed.has_compiled_adam is set and offload_optimizer is not; that Adam computes in host memory"
        )


def needed_extensions(settings: TrainConfig) -> tuple[str, ...]:
    """Names of the C++ extensions that DeepSpeed compiles for these settings."""
    return ("cpu_adam",) if settings.deepspeed.has_compiled_adam else ()


def deepspeed_config(settings: TrainConfig, num_parameters: int) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`: suggestions, under the user's file, under what the settings name."""
    require_consistent(settings)
    named = _named(settings)
    suggested = _suggested(settings.deepspeed.zero_stage, num_parameters)
    path = settings.deepspeed.config_file
    if path is None:
        return merge(suggested, named)
    theirs = read_deepspeed_file(path)
    problems = [
        *_refused(theirs),
        *_contradictions(named, theirs),
        *_offloading(named, theirs),
        *_left_open(merge(suggested, named), theirs),
    ]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(
            f"{path} contradicts the run's configuration:\n{listed}\n"
            'Remove these keys, or give those that the configuration names the value "auto".'
        )
    return merge(merge(suggested, _without_auto(theirs)), named)


def read_deepspeed_file(path: Path) -> dict[str, Any]:
    """A DeepSpeed configuration from JSON; a key that is given twice is refused."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise ConfigError(f"the DeepSpeed file {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the DeepSpeed file {path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"the DeepSpeed file {path} holds a {type(found).__name__}; it must hold an object")
    return found


def _named(settings: TrainConfig) -> dict[str, Any]:
    stage, adam = settings.deepspeed.zero_stage, settings.optimizer
    zero: dict[str, Any] = {"stage": stage}
    if stage in (1, 2):
        zero["compute_grad_norm"] = True
    if settings.deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if settings.deepspeed.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    is_bfloat16 = settings.precision == "bfloat16"
    named: dict[str, Any] = {
        # The loop marks the last micro-batch of a step itself, because their number varies: DeepSpeed must not divide.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": True,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": adam.max_grad_norm,
        "bf16": {"enabled": is_bfloat16},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": adam.learning_rate,
                "betas": [adam.beta1, adam.beta2],
                "eps": adam.epsilon,
                "weight_decay": adam.weight_decay,
                "torch_adam": not settings.deepspeed.has_compiled_adam,
            },
        },
        "zero_optimization": zero,
    }
    if is_bfloat16 and stage > 0:
        # Sums over micro-batches lose small gradients in bfloat16. Stage 0 of DeepSpeed offers nothing else.
        named["data_types"] = {"grad_accum_dtype": "fp32"}
    return named


def reduce_bucket_elements(stage: int, num_parameters: int) -> int:
    """Elements of gradients that are sent at once, unless the user's file says otherwise."""
    share = num_parameters // STAGE_3_BUCKETS if stage == 3 else num_parameters
    return _even(min(MAX_BUCKET_ELEMENTS, max(2, share)))


def _suggested(stage: int, num_parameters: int) -> dict[str, Any]:
    """Sizes that fit the network; DeepSpeed's defaults would reserve gigabytes for the smallest one."""
    bucket = reduce_bucket_elements(stage, num_parameters)
    zero: dict[str, Any] = {}
    if stage in (1, 2):
        zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if stage == 3:
        zero |= {
            "reduce_bucket_size": bucket,
            "stage3_prefetch_bucket_size": min(MAX_PREFETCH_ELEMENTS, num_parameters),
            # A share of the network, so that a small one is divided as well and not kept whole on every rank.
            "stage3_param_persistence_threshold": min(MAX_PERSISTENT_ELEMENTS, num_parameters // 1000),
        }
    return {"steps_per_print": None, "wall_clock_breakdown": False, "zero_optimization": zero}


def _even(number: int) -> int:
    return number + number % 2


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} given twice")
    return dict(pairs)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds something other than an object, under its dotted name."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _refused(theirs: Mapping[str, Any]) -> Iterator[str]:
    for name, value in _leaves(theirs):
        section = theirs[name.partition(".")[0]]
        is_off = isinstance(section, Mapping) and section.get("enabled") in (False, "auto")
        if value == "auto" or is_off:
            continue
        for refused, reason in REFUSED.items():
            if name == refused or name.startswith(f"{refused}."):
                yield f"{name} is {_spelled(value)}: {reason}"


def _contradictions(named: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in theirs.items():
        if name not in named or value == "auto":
            continue
        ours = named[name]
        if isinstance(ours, Mapping) and isinstance(value, Mapping):
            yield from _contradictions(ours, value, f"{prefix}{name}.")
        elif not _is_same(ours, value):
            yield f"{prefix}{name} is {_spelled(value)}, and the configuration says {_spelled(ours)}"


def _offloading(named: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """Offloading that only the file asks for."""
    ours, zero = named["zero_optimization"], theirs.get("zero_optimization")
    for name in ("offload_optimizer", "offload_param"):
        section = zero.get(name) if isinstance(zero, Mapping) else None
        device = section.get("device", "none") if isinstance(section, Mapping) else "none"
        if name not in ours and device not in ("none", "auto"):
            where = f"zero_optimization.{name}.device"
            yield f"{where} is {_spelled(device)}, and the configuration asks for no offloading"


def _left_open(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """DeepSpeed does not know "auto": it may stand only where there is a value to put in its place."""
    known = {name for name, _ in _leaves(ours)} | set(REFUSED)
    for name, value in _leaves(theirs):
        if value == "auto" and name not in known:
            yield f'{name} is "auto", and there is no value to put in its place'


def _without_auto(tree: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in tree.items() if value != "auto"}
    return {name: _without_auto(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _is_same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, str) and isinstance(theirs, str):
        return ours.lower() == theirs.lower()
    return bool(ours == theirs)


def _spelled(value: Any) -> str:
    return json.dumps(value)
