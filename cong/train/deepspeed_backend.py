"""The backend for many processes: DeepSpeed ZeRO behind the verbs of `Backend`.

The only place that imports DeepSpeed. Knows no objective, no stream and no schedule: it is told the learning rate.
Run as a program with the name of an extension it compiles that extension, so that an image can hold it.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cong.config.train import TrainConfig
from cong.errors import CheckpointError, ConfigError, CongError
from cong.train.data.batch import MicroBatch
from cong.train.deepspeed_files import (
    TAG,
    Conversion,
    SavedState,
    file_sizes,
    is_converted,
    universal_folder,
)
from cong.train.extensions import prepare_extension
from cong.train.forward import response_logits
from cong.train.process_group import join_process_group, text_from_first
from cong.train.zero import deepspeed_config, needed_extensions
from cong.wording import brought_by

logger = logging.getLogger(__name__)

CONVERSION_LIMIT_S = 3600.0
_POLL_S = 0.5


class DeepSpeedBackend:
    """A network whose optimiser state, gradients and parameters are divided over the ranks, as the stage says.

    In bfloat16 the network computes with bfloat16 weights, and the optimiser updates float32 copies of them.
    """

    def __init__(self, model: nn.Module, settings: TrainConfig) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise ConfigError("no parameter of the network requires gradients; there is nothing to train")
        if settings.precision == "float32":
            model.float()
        config = deepspeed_config(settings, sum(parameter.numel() for parameter in model.parameters()))
        self._deepspeed = deepspeed = _import_deepspeed()
        for name in needed_extensions(settings):
            if not is_compiled_in(Path(deepspeed.__file__ or "").parent, name):
                prepare_extension(name, build_command(name))
        self._settings = settings
        self._stage = settings.deepspeed.zero_stage
        self._num_trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        self._has_frozen = len(self._num_trained) < sum(1 for _ in model.parameters())
        self._has_stepped = False
        timeout_s = settings.deepspeed.timeout_s
        communication = deepspeed.accelerator.get_accelerator().communication_backend_name()
        self._is_group_ours = join_process_group(communication, timeout_s)
        try:
            self._group = _group_with_limit(deepspeed.utils.groups, timeout_s)
            self._engine: Any = deepspeed.initialize(model=model, model_parameters=trained, config=config)[0]
        except BaseException:
            self._leave_group()
            raise
        if self._stage == 0 and settings.precision == "bfloat16":
            self._forget_first_step()
        self._engine.train()

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        """Processes that hold this network together."""
        return dist.get_world_size()

    @property
    def device(self) -> torch.device:
        """Where micro-batches belong."""
        return torch.device(self._engine.device)

    def logits(self, batch: MicroBatch) -> Tensor:
        """Logits [N, V] that predict the response tokens; carries gradients."""
        return response_logits(self._engine, batch)

    @torch.no_grad()
    def predict(self, batch: MicroBatch) -> Tensor:
        """The same logits from the weights as they are, without gradients and without dropout."""
        self._engine.eval()
        try:
            return response_logits(self._engine, batch)
        finally:
            self._engine.train()

    def num_averaged(self, num_micro_batches: int) -> int:
        """The number of ranks: gradients of one rank's micro-batches are added, those of the ranks averaged."""
        return self.world_size

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add a micro-batch's gradients; `is_last` ends the optimiser step's accumulation."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Clip, update the weights, forget the gradients; returns the gradients' norm before clipping.

        Where the norm is not finite nothing is updated.
        """
        self._has_stepped = True
        norm = self._replicated_norm() if self._stage == 0 else None
        if norm is not None and not torch.isfinite(norm):
            self._engine.optimizer.zero_grad()
            return norm.item()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def total(self, values: Tensor) -> Tensor:
        """The sum of a small tensor over all ranks, on every rank; nobody returns before all have called."""
        summed = values.detach().to(self.device, copy=True)
        dist.all_reduce(summed, group=self._group)
        return summed.to(values.device)

    def from_first(self, text: str) -> str:
        """The text that rank 0 gives, on every rank; what the others give is ignored."""
        return text_from_first(text, self.device, self._group)

    def save(self, folder: Path) -> None:
        """Write weights and optimiser into a folder that every rank sees; each rank writes its own part.

        Frozen weights are left out: they are where they came from.
        """
        self._engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=self._has_frozen)
        problem = None
        if self.rank == 0:
            try:
                self._saved_state(file_sizes(folder)).write(folder)
            except OSError as error:
                problem = f"{folder} cannot be written: {error}"
        self._agree(problem)

    def load(self, folder: Path) -> None:
        """Take back what `save` wrote, by any number of ranks; refuses what is torn.

        For another number of ranks the state is converted first, into a folder beside the given one.
        """
        if self._has_stepped:
            raise CheckpointError("this backend has trained already; make a new one to load into")
        problem, saved = None, None
        try:
            saved = SavedState.read(folder)
            self._require_same(saved, folder)
        except CheckpointError as error:
            problem = str(error)
        self._agree(problem)
        assert saved is not None
        is_universal = self._stage > 0 and saved.world_size != self.world_size
        if is_universal:
            self._convert(folder)
        source = universal_folder(folder) if is_universal else folder
        problem = None
        # DeepSpeed asks for this at load time only; a key of its file would rule out an ordinary load.
        self._engine._config.load_universal_checkpoint = is_universal
        try:
            found, _ = self._engine.load_checkpoint(str(source), tag=TAG, load_module_strict=not self._has_frozen)
            if found is None:
                problem = f"DeepSpeed found nothing to load in {source}"
        except Exception as error:
            logger.exception("loading %s failed", source)
            problem = f"{source} cannot be loaded: {type(error).__name__}: {error}"
        finally:
            self._engine._config.load_universal_checkpoint = False
        self._agree(problem)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained tensor under its name in the network, whole and on the CPU, on every rank that iterates.

        One tensor at a time is gathered, in float32. All ranks iterate, and to the end.
        """
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                yield name, self._whole(parameter).detach().to("cpu", torch.float32, copy=True)

    def close(self) -> None:
        """Let go of process groups and memory. Not collective."""
        self._engine.destroy()
        self._leave_group()

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        if self._settings.precision == "float32":
            with self._deepspeed.zero.GatheredParameters([parameter]):
                return parameter.detach().clone()
        if self._stage > 0:
            copy: Tensor = self._deepspeed.utils.safe_get_full_fp32_param(parameter)
            return copy
        (exact,) = [exact for rounded, exact in self._replicated_copies() if rounded is parameter]
        return exact

    def _replicated_copies(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each trained parameter with its float32 copy, at stage 0 in bfloat16."""
        optimizer = self._engine.optimizer
        for rounded, exact in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            yield from zip(rounded, exact, strict=True)

    def _forget_first_step(self) -> None:
        """Undo the step on zero gradients with which DeepSpeed makes this optimiser: Adam would count it."""
        self._engine.basic_optimizer.state.clear()
        for rounded, exact in self._replicated_copies():
            exact.data.copy_(rounded.data)

    def _replicated_norm(self) -> Tensor:
        """Of gradients that are the same on every rank; DeepSpeed keeps none at stage 0."""
        gradients = [p.grad.float() for p in self._engine.module.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _saved_state(self, num_bytes: dict[str, int]) -> SavedState:
        return SavedState(
            zero_stage=self._stage,
            precision=self._settings.precision,
            world_size=self.world_size,
            deepspeed_version=self._deepspeed.__version__,
            num_trained=self._num_trained,
            num_bytes=num_bytes,
        )

    def _require_same(self, saved: SavedState, folder: Path) -> None:
        for name, ours in (("zero_stage", self._stage), ("precision", self._settings.precision)):
            theirs = getattr(saved, name)
            if theirs != ours:
                raise CheckpointError(f"{folder} was saved with {name} {theirs}, and this run has {ours}; keep it")
        different = sorted(set(saved.num_trained.items()) ^ set(self._num_trained.items()))
        if different:
            raise CheckpointError(
                f"{folder} was saved of another network or adapter: {len(different)} trained tensors differ, the first "
                f"is {different[0][0]}"
            )

    def _convert(self, folder: Path) -> None:
        """Rank 0 converts while the others wait; all hear of it when it fails."""
        deadline = time.monotonic() + CONVERSION_LIMIT_S
        conversion: Conversion | None = None
        problem: str | None = None
        is_done = False
        try:
            while True:
                if self.rank == 0:
                    try:
                        if conversion is None and not (is_done := is_converted(folder)):
                            logger.warning("%s was saved by another number of processes; converting it once", folder)
                            conversion = Conversion(folder)
                        is_done = is_done or (conversion is not None and conversion.is_done())
                    except (CheckpointError, OSError) as error:
                        problem = f"{folder} cannot be converted for {self.world_size} processes: {error}"
                    if not is_done and time.monotonic() > deadline:
                        problem = f"converting {folder} took longer than {CONVERSION_LIMIT_S:.0f} s"
                self._agree(problem)
                if self.total(torch.tensor(float(is_done))).item() > 0:
                    return
                time.sleep(_POLL_S)
        finally:
            if conversion is not None:
                conversion.close()

    def _agree(self, problem: str | None) -> None:
        """All ranks raise if one of them has met a problem, so that none is left waiting for the others."""
        flags = torch.zeros(self.world_size)
        flags[self.rank] = float(problem is not None)
        failed = self.total(flags).nonzero()[:, 0].tolist()
        if problem is not None:
            raise CheckpointError(problem)
        if failed:
            raise CheckpointError(f"rank {failed[0]} of {self.world_size} failed; its own message says why")

    def _leave_group(self) -> None:
        if self._is_group_ours and dist.is_initialized():
            self._deepspeed.comm.destroy_process_group()


def _group_with_limit(groups: Any, timeout_s: float) -> dist.ProcessGroup:
    """The group of all ranks through which DeepSpeed talks: it would make one that waits for half an hour."""
    if groups._WORLD_GROUP is None:
        groups._WORLD_GROUP = dist.new_group(timeout=timedelta(seconds=timeout_s))
    group: dist.ProcessGroup = groups._WORLD_GROUP
    return group


def is_compiled_in(package: Path, extension: str) -> bool:
    """Whether DeepSpeed was installed with an extension, as our images have it; then nothing is compiled later."""
    return any(package.glob(f"ops/*/{extension}_op.*"))


def build_command(extension: str) -> list[str]:
    """The command that compiles an extension of DeepSpeed's and leaves it where training looks for it."""
    return [sys.executable, "-m", "cong.train.deepspeed_backend", extension]


def build_extension(name: str) -> None:
    """Compile an extension in this process."""
    _import_deepspeed()
    from deepspeed.ops.op_builder.all_ops import ALL_OPS  # type: ignore[import-untyped]

    if name not in ALL_OPS:
        raise CongError(f"DeepSpeed has no extension {name!r} here; it has {', '.join(sorted(ALL_OPS))}")
    ALL_OPS[name].load()


def _import_deepspeed() -> ModuleType:
    if not torch.cuda.is_available():
        # Otherwise DeepSpeed warns that it has found no accelerator.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with brought_by("train"):
        import deepspeed  # type: ignore[import-untyped]

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Collectives of torch that DeepSpeed calls by their old names, once per call.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Compiled at every first start on a CPU, used by no training: it reduces in shared memory for inference.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed  # type: ignore[no-any-return]


if __name__ == "__main__":
    build_extension(sys.argv[1])
