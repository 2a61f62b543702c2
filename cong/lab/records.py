"""Sample records with every field filled, made from a number: what the stream is tested and measured with."""

import numpy as np

from cong.schemas import (
    FinishReason,
    NetworkIdentity,
    Prompt,
    SampleRecord,
    SamplingParameters,
    Timings,
    content_key,
)

PAIR = (
    NetworkIdentity(role="aligned", name="lab-aligned", fingerprint="f-aligned"),
    NetworkIdentity(role="base", name="lab-base", fingerprint="f-base"),
)
CONTRASTIVE = SamplingParameters.contrastive(0.4)
PLAIN = SamplingParameters.plain()


def synthetic_record(number: int, num_tokens: int = 8, is_plain: bool = False) -> SampleRecord:
    """A record that is a pure function of its arguments; its log-probabilities are exact in single precision."""
    generator = np.random.default_rng([number, int(is_plain)])

    def logprobs() -> tuple[float, ...]:
        return tuple((-generator.exponential(1.0, num_tokens)).astype(np.float32).tolist())

    reason: FinishReason = "length" if number % 4 == 3 else "stop"
    return SampleRecord(
        key="s-" + content_key([number, num_tokens, is_plain]),
        kind="plain" if is_plain else "contrastive",
        prompt=Prompt(text=f"Prompt number {number}: say it again.", prompt_id=f"p-{number}"),
        prompt_token_ids=tuple(generator.integers(0, 32_000, 16).tolist()),
        completion_text=" ".join(f"word{word}" for word in generator.integers(0, 999, (num_tokens * 3) // 4)),
        completion_token_ids=tuple(generator.integers(0, 32_000, num_tokens).tolist()),
        logprobs={"strong": logprobs()} if is_plain else {"aligned": logprobs(), "base": logprobs()},
        mixture_logprobs=logprobs(),
        head_sizes=tuple(generator.integers(1, 40, num_tokens).tolist()),
        finish_reason=reason,
        parameters=PLAIN if is_plain else CONTRASTIVE,
        sample_index=0,
        networks=(NetworkIdentity(role="strong", name="lab-strong", fingerprint="f-strong"),) if is_plain else PAIR,
        tokenizer_fingerprint="t-lab",
        software={"cong": "0"},
        writer="lab",
        timings=Timings(queued_s=0.25, first_token_s=0.5, total_s=1.0 + number % 3),
        created_at="2026-01-01T00:00:00Z",
    )
