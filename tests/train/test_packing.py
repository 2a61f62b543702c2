"""Packed rows give what each sequence gives alone, for every family of networks, and cost no other's attention."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cong.errors import UnsupportedModel
from cong.models import load_network, register_attention
from cong.objectives import DPO, SFT, Objective
from cong.train.data.batch import Example, make_batch
from cong.train.data.feed import count_units
from cong.train.data.packing import ATTENTION_NAME, LAYOUT, attend_packed, lay_out
from cong.train.forward import response_logits
from cong.train.loop import loss_share
from cong.train.trainee import COMPARED_FAMILIES, compile_layers, pack_attention
from tests.engine.conftest import FAMILIES, save_network
from tests.models.mixtures import SMALL

VOCAB = 61
MORE: dict[str, Callable[[], Any]] = {
    "gemma": lambda: transformers.GemmaConfig(**{**SMALL, "num_key_value_heads": 1}, head_dim=8),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **SMALL, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=7
    ),
}
NETWORKS = {**FAMILIES, **MORE}
ONLY_FLOAT32 = {"gpt-oss"}
"""Torch multiplies groups of experts in float32 at most."""


def examples_of(rng: np.random.Generator, lengths: Sequence[tuple[int, ...]]) -> list[Example]:
    """Examples with responses of the given lengths, and log-probs of a reference for each of their tokens."""
    return [
        Example(
            key=str(number),
            prompt_id=str(number),
            prompt_ids=rng.integers(3, VOCAB, 1 + number % 9).astype(np.int32),
            responses=tuple(rng.integers(3, VOCAB, length).astype(np.int32) for length in sides),
            frozen={"reference": tuple(rng.normal(-3, 1, length).astype(np.float32) for length in sides)},
        )
        for number, sides in enumerate(lengths)
    ]


def network(family: str) -> Any:
    """In float64 where that can be, so that only mistakes differ; without dropout."""
    torch.manual_seed(1)
    config = NETWORKS[family]()
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model if family in ONLY_FLOAT32 else model.double()


def loss_and_gradients(
    model: nn.Module, objective: Objective, batches: Sequence[Sequence[Example]], *, is_packed: bool
) -> tuple[float, dict[str, Tensor]]:
    """Of one optimiser step that is split into these micro-batches."""
    model.zero_grad()
    num_units = sum(count_units(examples, objective.needs.unit) for examples in batches)
    total = 0.0
    for examples in batches:
        batch = make_batch(examples, objective.needs.frozen, is_packed=is_packed)
        loss = loss_share(lambda each: response_logits(model, each), objective, batch, 0.0).loss(num_units)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("objective", [SFT(), DPO(beta=0.5)], ids=["sft", "dpo"])
def test_packed_loss_and_gradients_are_those_of_single_sequences(family: str, objective: Objective) -> None:
    rng = np.random.default_rng(0)
    # Short ones and long ones of similar and of very unlike lengths; sliding windows are 7 to 11 long.
    lengths = [(5, 9), (70, 66), (90, 3), (1, 1), (68, 80), (102, 99)]
    examples = examples_of(rng, lengths if objective.needs.unit == "pairs" else [sides[:1] for sides in lengths])
    model = network(family)
    alone = loss_and_gradients(model, objective, [[example] for example in examples], is_packed=False)
    register_attention(ATTENTION_NAME, attend_packed)
    model.set_attn_implementation(ATTENTION_NAME)
    packed = loss_and_gradients(model, objective, [examples, []], is_packed=True)
    # Rotary tables and norms are kept in float32 by some families.
    bound = 1e-5 if family in ONLY_FLOAT32 else 1e-6
    assert packed[0] == pytest.approx(alone[0], rel=bound)
    assert packed[1].keys() == alone[1].keys()
    for name, gradient in alone[1].items():
        scale = max(1.0, gradient.abs().max().item())
        assert (packed[1][name] - gradient).abs().max().item() / scale < bound, name


@pytest.mark.parametrize("objective", [SFT(), SFT(mean_over="sequences"), DPO(beta=0.5)])
@pytest.mark.parametrize("is_packed", [True, False])
def test_splitting_into_micro_batches_changes_nothing(objective: Objective, is_packed: bool) -> None:
    rng = np.random.default_rng(1)
    sides = 2 if objective.needs.unit == "pairs" else 1
    examples = examples_of(rng, [tuple(rng.integers(1, 40, sides).tolist()) for _ in range(8)])
    model = network("llama")
    if is_packed:
        register_attention(ATTENTION_NAME, attend_packed)
        model.set_attn_implementation(ATTENTION_NAME)
    whole = loss_and_gradients(model, objective, [examples], is_packed=is_packed)
    for split in ([examples[:3], examples[3:]], [[each] for each in examples[::-1]], [examples[4:], [], examples[:4]]):
        parts = loss_and_gradients(model, objective, split, is_packed=is_packed)
        assert parts[0] == pytest.approx(whole[0], rel=1e-6)
        assert all(torch.allclose(parts[1][name], gradient, atol=1e-6) for name, gradient in whole[1].items())


def test_only_response_positions_reach_the_head() -> None:
    rng = np.random.default_rng(2)
    model = network("llama")
    register_attention(ATTENTION_NAME, attend_packed)
    model.set_attn_implementation(ATTENTION_NAME)
    widths: list[int] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: widths.append(inputs[0].shape[1]))
    batch = make_batch(examples_of(rng, [(4,), (7,)]), is_packed=True)
    assert response_logits(model, batch).shape == (11, VOCAB)
    assert widths == [11]


def test_an_empty_micro_batch_has_a_loss_of_zero_and_a_gradient_for_every_weight() -> None:
    model = network("gemma2")
    register_attention(ATTENTION_NAME, attend_packed)
    model.set_attn_implementation(ATTENTION_NAME)
    for is_packed in (True, False):
        model.set_attn_implementation(ATTENTION_NAME if is_packed else "eager")
        model.zero_grad()
        batch = make_batch([], ("reference",), is_packed=is_packed)
        assert batch.num_tokens == 0
        share = loss_share(lambda each: response_logits(model, each), DPO(), batch, 0.0)
        share.loss(7).backward()  # type: ignore[no-untyped-call]
        assert share.loss_sum.item() == 0.0
        assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())


def test_a_sequence_does_not_see_its_neighbours() -> None:
    rng = np.random.default_rng(3)
    model = network("mistral-window")
    register_attention(ATTENTION_NAME, attend_packed)
    model.set_attn_implementation(ATTENTION_NAME)
    first, second, third = examples_of(rng, [(20,), (20,), (20,)])
    logits = response_logits(model, make_batch([first, second, third], is_packed=True))
    others = examples_of(np.random.default_rng(4), [(20,), (20,), (20,)])
    again = response_logits(model, make_batch([others[0], second, others[2]], is_packed=True))
    batch = make_batch([first, second, third], is_packed=True)
    place = batch.origins.index((1, 0))
    rows = slice(20 * place, 20 * place + 20)
    assert torch.equal(logits[rows], again[rows])
    assert not torch.equal(logits, again)


def test_groups_hold_sequences_of_similar_length_and_every_token_once() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        lengths = sorted(rng.integers(1, 400, rng.integers(1, 40)).tolist(), reverse=True)
        layout = lay_out(lengths)
        for groups in (layout.groups, layout.cpu_groups):
            assert [length for group in groups for length in group.lengths] == lengths
            start = 0
            for group in groups:
                assert group.start == start
                start = group.stop
                assert group.longest <= 64 or min(group.lengths) >= 0.75 * group.longest
                if group.places_SL is not None and group.kept_N is not None:
                    places = group.places_SL.flatten()[group.kept_N]
                    assert torch.equal(places, torch.arange(sum(group.lengths)))
        assert all(len(set(group.lengths)) == 1 for group in layout.cpu_groups if group.longest > 96)


class Called(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of the operators that run, and the elements of what they give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_elements: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.num_elements[func.overloadpacket.__name__] += out.numel()
        return out


def test_gradients_of_packed_attention_are_gathered_and_not_added_up() -> None:
    lengths = [120, 100, 90, 84, 81, 60, 50, 40, 9, 7]
    row = torch.randn(3, 1, sum(lengths), 2, 8, requires_grad=True)
    query, key, value = row.transpose(2, 3).unbind(0)
    out, _ = attend_packed(nn.Module(), query, key, value, None, **{LAYOUT: lay_out(lengths)})
    with Called() as called:
        out.sum().backward()  # type: ignore[no-untyped-call]
    assert called.num_elements["index_select"] > 0
    assert not called.num_elements.keys() & {"slice_backward", "select_backward", "index_put", "index_add"}
    assert called.num_elements["new_zeros"] < out.numel()


def test_an_unknown_family_is_compared_when_it_is_loaded(tmp_path: Any) -> None:
    config = transformers.Olmo2Config(**SMALL)
    assert config.model_type not in COMPARED_FAMILIES
    loaded = load_network(
        str(save_network(tmp_path / "network", config, seed=0)), role="strong", dtype="float32", device="cpu"
    )
    pack_attention(loaded)
    model: Any = loaded.model
    assert model.config._attn_implementation == ATTENTION_NAME


def test_a_network_that_would_be_wrong_when_packed_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_network(tmp_path / "network", transformers.Olmo2Config(**SMALL), seed=0)
    loaded = load_network(str(folder), role="strong", dtype="float32", device="cpu")

    def attend_too_much(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out.transpose(1, 2), None

    monkeypatch.setattr("cong.train.trainee.attend_packed", attend_too_much)
    try:
        with pytest.raises(UnsupportedModel, match=r"other logits for packed sequences.*is_packed=false"):
            pack_attention(loaded)
    finally:
        register_attention(ATTENTION_NAME, attend_packed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 100])
def test_the_kernel_for_whole_rows_attends_as_groups_do(window: int | None) -> None:
    layout = lay_out([300, 200, 140, 60, 9, 1]).to("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    module = nn.Module()

    def outcome(dtype: torch.dtype) -> list[Tensor]:
        generator.manual_seed(0)
        tensors = [
            torch.randn(1, heads, 710, 64, device="cuda", generator=generator).to(dtype).requires_grad_()
            for heads in (8, 2, 2)
        ]
        query, key, value = tensors
        out, _ = attend_packed(module, query, key, value, None, packed_layout=layout, sliding_window=window)
        pull = torch.randn(out.shape, device="cuda", generator=generator)
        (out.float() * pull).sum().backward()  # type: ignore[no-untyped-call]
        return [out, *(tensor.grad for tensor in tensors if tensor.grad is not None)]

    # In float32 it is done in groups, in bfloat16 by the kernel.
    for exact, rounded in zip(outcome(torch.float32), outcome(torch.bfloat16), strict=True):
        assert rounded.dtype == torch.bfloat16
        assert (exact - rounded.float()).norm() < 0.01 * exact.norm()


@pytest.mark.filterwarnings("ignore")  # warnings of torch's compiler are not ours to heed
def test_compiled_layers_compute_the_same_for_rows_of_any_length() -> None:
    examples = examples_of(np.random.default_rng(0), [(6,), (30,), (9,)])
    found = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        made: Any = transformers.LlamaForCausalLM
        model = made(transformers.LlamaConfig(**{**SMALL, "num_hidden_layers": 2, "vocab_size": VOCAB}))
        register_attention(ATTENTION_NAME, attend_packed)
        model.set_attn_implementation(ATTENTION_NAME)
        if is_compiled:
            compile_layers(model)
        found.append([loss_and_gradients(model, SFT(), [part], is_packed=True) for part in (examples, examples[:1])])
    for (loss, gradients), (compiled_loss, compiled_gradients) in zip(*found, strict=True):
        assert compiled_loss == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(compiled_gradients, gradients, rtol=1e-4, atol=1e-6)
