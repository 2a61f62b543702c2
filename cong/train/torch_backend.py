"""The backend for one process: plain torch, AdamW on float32 weights, a network that computes in float32 or bfloat16.

Also the oracle that other backends are compared with. Legend: N response tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cong.config.train import OptimizerSettings, Precision, TrainConfig
from cong.errors import CheckpointError
from cong.models.pretrained import parse_device
from cong.train.backend import Backend, BackendFactory
from cong.train.data.batch import MicroBatch
from cong.train.forward import response_logits

_WEIGHTS, _OPTIMIZER = "weights.safetensors", "optimizer.safetensors"


class TorchBackend:
    """A network in training, all of it in this process.

    In bfloat16 the network's parameters are rounded copies of the trained weights, which stay in float32 here with the
    sums of their gradients: a step is often too small to be seen in bfloat16, and so is a micro-batch in a sum. Buffers
    are left as they are.
    """

    rank = 0
    world_size = 1

    def __init__(
        self, model: nn.Module, settings: OptimizerSettings, *, precision: Precision, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self._model = model.to(self.device).train()
        self._max_grad_norm = settings.max_grad_norm
        # named_parameters names a tied weight once.
        parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        assert parameters, "a network without trained weights has nothing to learn"
        for weight in parameters.values():
            weight.data = weight.data.float()
        self._trained: dict[str, Tensor] = dict(parameters)
        """In float32; the network's own parameters unless these are rounded copies."""
        self._rounded: dict[str, nn.Parameter] = {}
        if precision == "bfloat16":
            self._trained = {name: weight.data for name, weight in parameters.items()}
            self._rounded = parameters
            for weight in model.parameters():
                weight.data = weight.data.bfloat16()
            for name, weight in parameters.items():
                weight.register_post_accumulate_grad_hook(_adds_to(self._trained[name]))  # type: ignore[no-untyped-call]
        self._optimizer = torch.optim.AdamW(
            self._trained.values(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def logits(self, batch: MicroBatch) -> Tensor:
        """Logits [N, V] that predict the response tokens; carries gradients."""
        return response_logits(self._model, batch)

    def predict(self, batch: MicroBatch) -> Tensor:
        """The same from the weights as they are, without gradients and without dropout."""
        self._model.eval()
        try:
            with torch.no_grad():
                return self.logits(batch)
        finally:
            self._model.train()

    def num_averaged(self, num_micro_batches: int) -> int:
        """Gradients are only added up."""
        return 1

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add a micro-batch's gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        """Clip, update, forget the gradients; returns their norm before clipping."""
        grads = [weight.grad for weight in self._trained.values() if weight.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        if self._max_grad_norm:
            nn.utils.clip_grads_with_norm_(self._trained.values(), self._max_grad_norm, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._round()
        return float(norm)

    def total(self, values: Tensor) -> Tensor:
        """The values themselves: there is one rank."""
        return values

    def from_first(self, text: str) -> str:
        """The text itself."""
        return text

    def save(self, folder: Path) -> None:
        """Weights and moments as safetensors: nothing in a checkpoint can run code."""
        save_file({name: weight.detach().contiguous() for name, weight in self._trained.items()}, folder / _WEIGHTS)
        state = {
            f"{field}/{name}": self._optimizer.state[weight][field].detach().contiguous()
            for name, weight in self._trained.items()
            for field in sorted(self._optimizer.state.get(weight, {}))
        }
        save_file(state, folder / _OPTIMIZER)

    def load(self, folder: Path) -> None:
        """Take back what `save` wrote."""
        try:
            weights, state = load_file(folder / _WEIGHTS), load_file(folder / _OPTIMIZER)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder} cannot be read: {error}; resume from an older checkpoint") from error
        wrong = sorted(weights.keys() ^ self._trained.keys()) or sorted(
            name for name, weight in self._trained.items() if weights[name].shape != weight.shape
        )
        if wrong:
            raise CheckpointError(f"{folder} holds another network: {len(wrong)} weights differ, first {wrong[0]}")
        with torch.no_grad():
            for name, weight in self._trained.items():
                weight.copy_(weights[name])
        self._round()
        for key, value in state.items():
            field, _, name = key.partition("/")
            weight = self._trained[name]
            self._optimizer.state[weight][field] = value.to(self.device)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained tensor under its name in the network, on the CPU."""
        for name, weight in self._trained.items():
            yield name, weight.detach().to("cpu", copy=True)

    def close(self) -> None:
        """Nothing is held that has to be let go."""

    @torch.no_grad()
    def _round(self) -> None:
        """Let the network compute with the weights as they are now."""
        for name, weight in self._rounded.items():
            weight.copy_(self._trained[name])


def _adds_to(trained: Tensor) -> Callable[[Tensor], None]:
    """A hook that adds a rounded copy's gradient to that of the trained weight, and drops it."""

    def add(rounded: Tensor) -> None:
        assert rounded.grad is not None
        if trained.grad is None:
            trained.grad = rounded.grad.float()
        else:
            trained.grad += rounded.grad
        rounded.grad = None

    return add


def torch_backend(device: str) -> BackendFactory:
    """Makes the backend of a run in one process, on a device that is there."""
    parse_device(device)

    def make(model: nn.Module, settings: TrainConfig) -> Backend:
        return TorchBackend(model, settings.optimizer, precision=settings.precision, device=device)

    return make
