"""Trainers under one clock: our loop, TRL's, and a bare forward and backward of the same tokens.

Every trainer gets a network, examples in one order and a time limit, and says how many tokens it read in how many
seconds, step by step. A token is one that a network has to read; padding and dropped work count for nobody.
Legend: B rows, L their length.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn

from cong.config.train import BatchSettings, OptimizerSettings, Precision
from cong.models import register_attention
from cong.objectives import DPO, SFT, FrozenNetwork, Objective, Scorer, fused_scores, policy_scores
from cong.train.backend import Backend
from cong.train.data.batch import Example
from cong.train.data.feed import Feed
from cong.train.data.packing import ATTENTION_NAME, attend_packed
from cong.train.data.source import ExampleList
from cong.train.loop import StepReport, run
from cong.train.progress import Progress
from cong.train.torch_backend import TorchBackend
from cong.train.trainee import compile_layers

BOS, EOS, PADDING, NUM_SPECIAL = 0, 1, 2, 3
LEARNING_RATE = 1e-5
BETA = 0.1


@dataclass(frozen=True)
class Work:
    """What every trainer gets."""

    examples: Sequence[Example]
    """More than any of them will read."""
    batch_size: int
    """Examples of one optimiser step."""
    max_tokens: int
    """Of one forward pass where the trainer packs."""
    precision: Precision
    device: str

    @property
    def num_steps(self) -> int:
        """Optimiser steps in the examples."""
        return len(self.examples) // self.batch_size

    def step_tokens(self, step: int) -> tuple[int, int]:
        """Tokens that the examples of a step have, and those of them in responses."""
        chosen = self.examples[step * self.batch_size : (step + 1) * self.batch_size]
        return sum(each.num_tokens for each in chosen), sum(len(part) for each in chosen for part in each.responses)


@dataclass
class Timing:
    """Steps as they were done; the first ones warm up and are left out."""

    num_warm: int = 2
    stamps: list[tuple[float, int, int]] = field(default_factory=list)
    """Behind each step: the time, its tokens, its response tokens."""

    def done(self, num_tokens: int, num_response_tokens: int) -> None:
        """A step is over, on the device too."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stamps.append((time.perf_counter(), num_tokens, num_response_tokens))

    def is_over(self, seconds: float) -> bool:
        """Whether the counted steps have had their time."""
        return len(self.stamps) > self.num_warm and self.stamps[-1][0] - self.stamps[self.num_warm - 1][0] >= seconds

    @property
    def counted(self) -> list[tuple[float, int, int]]:
        """Seconds, tokens and response tokens of each counted step."""
        times = [stamp[0] for stamp in self.stamps]
        spans = zip(times[self.num_warm - 1 :], self.stamps[self.num_warm :], strict=False)
        return [(stamp[0] - before, stamp[1], stamp[2]) for before, stamp in spans]


Trainer = Callable[[float], Timing]
"""Trains for about so many seconds beyond its warm-up."""


def draw_examples(
    num_examples: int, *, vocab: int, median_tokens: int, num_responses: int, prompt_tokens: tuple[int, int], seed: int
) -> list[Example]:
    """Random tokens; lengths of responses are lognormal, at most eight times the median."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(num_examples):
        lengths = median_tokens * rng.lognormal(0.0, 0.8, num_responses)
        prompt = rng.integers(NUM_SPECIAL, vocab, rng.integers(*prompt_tokens))
        responses = [rng.integers(NUM_SPECIAL, vocab, int(min(8 * median_tokens, max(4, size)))) for size in lengths]
        for response in responses:
            response[-1] = EOS
        frozen: dict[FrozenNetwork, tuple[Any, ...]] = {}
        if num_responses > 1:
            frozen["reference"] = tuple(rng.normal(-9, 1, len(each)).astype(np.float32) for each in responses)
        found.append(
            Example(
                key=str(number),
                prompt_id=str(number),
                prompt_ids=prompt.astype(np.int32),
                responses=tuple(each.astype(np.int32) for each in responses),
                frozen=frozen,
            )
        )
    return found


def small_network() -> Any:
    """A random Llama of 6 layers, 256 wide, 4,096 words, the same every time."""
    torch.manual_seed(0)
    made: Any = transformers.LlamaForCausalLM
    return made(
        transformers.LlamaConfig(
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PADDING,
        )
    )


def small_work(num_responses: int) -> Work:
    """Records of mixed lengths for it: 16 samples or 8 pairs to a step."""
    size = 16 // num_responses
    examples = draw_examples(
        40 * size,
        vocab=4096,
        median_tokens=96,
        num_responses=num_responses,
        prompt_tokens=(24, 72),
        seed=num_responses,
    )
    return Work(examples, size, 4096, "float32", "cpu")


def ours(model: Any, work: Work, *, is_packed: bool = True, is_compiled: bool = False) -> Trainer:
    """Our loop with the plain torch backend."""
    if is_compiled:
        compile_layers(model)
    optimizer = OptimizerSettings(learning_rate=LEARNING_RATE)
    backend = TorchBackend(model, optimizer, precision=work.precision, device=work.device)
    return train_with(backend, model, work, is_packed=is_packed, score=fused_scores if is_compiled else policy_scores)


def pack_attention(model: Any) -> None:
    """Let a network attend to packed rows."""
    register_attention(ATTENTION_NAME, attend_packed)
    model.set_attn_implementation(ATTENTION_NAME)


def train_with(
    backend: Backend, model: Any, work: Work, *, is_packed: bool = True, score: Scorer = policy_scores
) -> Trainer:
    """Our loop with any backend; pairs are trained by DPO with log-probs of the reference at hand."""
    if is_packed:
        pack_attention(model)
    longest = max(example.longest for example in work.examples)
    settings = BatchSettings(
        batch_size=work.batch_size,
        max_tokens_per_micro_batch=work.max_tokens,
        max_example_tokens=longest,
        is_packed=is_packed,
    )
    method: Objective = SFT() if len(work.examples[0].responses) == 1 else DPO(beta=BETA)

    def train(seconds: float) -> Timing:
        timing = Timing()
        source = ExampleList(work.examples)
        feed = Feed(
            source,
            settings,
            unit=method.needs.unit,
            rank=backend.rank,
            world_size=backend.world_size,
            frozen_names=method.needs.frozen,
        )

        def watch(progress: Progress, report: StepReport) -> None:
            timing.done(report.num_tokens, report.num_response_tokens)

        def is_over() -> bool:
            # Whoever is first decides for all.
            return bool(backend.total(torch.tensor([float(backend.rank == 0 and timing.is_over(seconds))])).item())

        run(
            backend,
            method,
            feed,
            Progress(work.num_steps, source.position),
            lambda step: LEARNING_RATE,
            [watch],
            should_stop=is_over,
            score=score,
        )
        return timing

    return train


def bare(model: nn.Module, work: Work) -> Trainer:
    """Forward and backward alone, on full rows of one length without padding; the head reads as many rows as ours."""
    network: Any = model.to(work.device, torch.bfloat16 if work.precision == "bfloat16" else torch.float32).train()
    num_tokens = sum(example.num_tokens for example in work.examples)
    num_responses = sum(len(example.responses) for example in work.examples)
    num_response_tokens = sum(len(part) for example in work.examples for part in example.responses)
    length = num_tokens // num_responses
    kept = min(length - 1, round(length * num_response_tokens / num_tokens))
    vocab = network.config.vocab_size
    generator = torch.Generator().manual_seed(0)

    def forward_backward(num_rows: int) -> None:
        ids_BL = torch.randint(NUM_SPECIAL, vocab, (num_rows, length), generator=generator).to(work.device)
        logits = network(input_ids=ids_BL, logits_to_keep=kept + 1, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids_BL[:, -kept:].reshape(-1))
        loss.backward()

    def train(seconds: float) -> Timing:
        timing = Timing()
        for step in range(work.num_steps):
            left = max(1, round(work.step_tokens(step)[0] / length))
            rows_at_once = max(1, work.max_tokens // length)
            timed = left
            while left:
                forward_backward(min(left, rows_at_once))
                left -= min(left, rows_at_once)
            network.zero_grad()
            timing.done(timed * length, timed * kept)
            if timing.is_over(seconds):
                break
        return timing

    return train


def make_tokenizer(vocab: int) -> Any:
    """Words w3, w4, ... between spaces, each one token."""
    words = {"<bos>": BOS, "<eos>": EOS, "<pad>": PADDING}
    words |= {f"w{number}": number for number in range(NUM_SPECIAL, vocab)}
    core = tokenizers.Tokenizer(WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    wrapped: Any = transformers.PreTrainedTokenizerFast
    return wrapped(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<pad>")


def trl_trainer(model: Any, work: Work, *, per_device: int, is_checkpointed: bool = False) -> Trainer:
    """TRL's trainer with its defaults: padded batches; for pairs its reference log-probs are computed before the clock.

    `per_device` examples pass at a time, as many times as a step needs.
    """
    import datasets
    import trl

    is_paired = len(work.examples[0].responses) == 2
    device = torch.device(work.device)

    class Clock(transformers.TrainerCallback):
        def __init__(self, timing: Timing, seconds: float) -> None:
            self.timing, self.seconds = timing, seconds

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            self.timing.done(*work.step_tokens(state.global_step - 1))
            control.should_training_stop |= self.timing.is_over(self.seconds)

    class InOrder:
        def _get_train_sampler(self, *others: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[attr-defined]

    options: dict[str, Any] = {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": work.batch_size // per_device,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": device.type == "cpu",
        "bf16": work.precision == "bfloat16",
        "gradient_checkpointing": is_checkpointed,
        "max_length": None,
        "disable_tqdm": True,
    }
    tokenizer = make_tokenizer(model.config.vocab_size)
    with tempfile.TemporaryDirectory() as output:
        options["output_dir"] = output
        trainer: Any
        if is_paired:
            made = type("Paired", (InOrder, trl.DPOTrainer), {})
            rows = [_as_text(example) for example in work.examples]
            settings: Any = trl.DPOConfig(**options, beta=BETA, precompute_ref_log_probs=True)
        else:
            made = type("Single", (InOrder, trl.SFTTrainer), {})
            rows = [
                {
                    "input_ids": [*each.prompt_ids.tolist(), *each.responses[0].tolist()],
                    "completion_mask": [0] * len(each.prompt_ids) + [1] * len(each.responses[0]),
                }
                for each in work.examples
            ]
            settings = trl.SFTConfig(**options)
        trainer = made(
            model=model, args=settings, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
        )

    def train(seconds: float) -> Timing:
        timing = Timing()
        clock = Clock(timing, seconds)
        trainer.add_callback(clock)
        trainer.train()
        trainer.remove_callback(clock)
        return timing

    return train


def _as_text(example: Example) -> dict[str, str]:
    def text(ids: Any) -> str:
        return " ".join("<eos>" if number == EOS else f"w{number}" for number in ids)

    chosen, rejected = (f" {text(response)}" for response in example.responses)
    return {"prompt": text(example.prompt_ids), "chosen": chosen, "rejected": rejected}


def has_trl() -> str:
    """Empty where TRL can be imported, otherwise why not."""
    try:
        import datasets  # noqa: F401
        import trl
    except ImportError as error:
        return f"not measured: {error}"
    return "" if trl.__version__ else "not measured: TRL has no version"
