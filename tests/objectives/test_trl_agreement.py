"""Our losses against those of TRL's own trainers, on the batches their own collators make.

Legend: B rows, T positions, V vocabulary.
"""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cong.objectives import DPO, SFT, Objective, ResponseTokens, policy_scores, response_tokens, token_logprobs

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of TRL and of what it imports are not ours to heed

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghij"]
RECORDS = [
    {"prompt": "a b c", "chosen": " d e f g h", "rejected": " d j"},
    {"prompt": "b", "chosen": " a", "rejected": " c c c c d e"},
    {"prompt": "h i j a b", "chosen": " b a j", "rejected": " b a i h"},
    {"prompt": "f f", "chosen": " g h i j a b c", "rejected": " a"},
]
CPU = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True}


def trl() -> Any:
    """Imported where the warnings it imports with are let pass."""
    return importlib.import_module("trl")


def letters() -> Any:
    """A tokenizer of single letters."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<pad>", "<eos>", "<unk>"])
    special: Any = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=made, clean_up_tokenization_spaces=False, **special)


def tiny_llama(seed: int) -> Any:
    """A random network whose log-probs differ much between tokens and between seeds."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def our_loss(objective: Objective, model: Any, batch: Any, responses: ResponseTokens, num_units: int) -> Tensor:
    logits_BTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    policy = policy_scores(responses.rows(logits_BTV), responses, objective.needs)
    return objective(policy, responses, progress=0.0).loss(num_units)


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_same_loss_and_gradients(model: Any, ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for our_gradient, their_gradient in zip(gradients(model, ours), gradients(model, theirs), strict=True):
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_tokens_of_step", [None, 57])
def test_sft_agrees_with_trl(tmp_path: Path, num_tokens_of_step: int | None) -> None:
    model = tiny_llama(0)
    records = [{"prompt": record["prompt"], "completion": record["chosen"]} for record in RECORDS]
    trainer = trl().SFTTrainer(
        model,
        args=trl().SFTConfig(str(tmp_path), per_device_train_batch_size=len(records), **CPU),
        train_dataset=Dataset.from_list(records),
        processing_class=letters(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(model, dict(batch), num_items_in_batch=num_tokens_of_step)
    responses = response_tokens(batch["input_ids"], batch["labels"] != -100)
    num_tokens = num_tokens_of_step or responses.count("tokens")
    assert_same_loss_and_gradients(model, our_loss(SFT(), model, batch, responses, num_tokens), theirs)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_agrees_with_trl(tmp_path: Path, beta: float) -> None:
    model, reference = tiny_llama(0), tiny_llama(1)
    trainer = trl().DPOTrainer(
        model,
        ref_model=reference,
        args=trl().DPOConfig(str(tmp_path), per_device_train_batch_size=len(RECORDS), beta=beta, **CPU),
        train_dataset=Dataset.from_list(RECORDS),
        processing_class=letters(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(model, dict(batch))
    mask_BT = batch["completion_mask"].bool()
    with torch.no_grad():
        logits_BTV = reference(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    reference_N = token_logprobs(logits_BTV, batch["input_ids"])[mask_BT]
    num_pairs = len(RECORDS)
    pairs = [(i, num_pairs + i) for i in range(num_pairs)]  # TRL's batch: all chosen ones, then all rejected ones
    responses = response_tokens(batch["input_ids"], mask_BT, pairs=pairs, frozen={"reference": reference_N})
    ours = our_loss(DPO(beta=beta), model, batch, responses, num_pairs)
    assert_same_loss_and_gradients(model, ours, theirs)
