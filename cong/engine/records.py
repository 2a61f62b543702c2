"""A finished sequence as the record that leaves the engine."""

from datetime import UTC, datetime

from cong.engine.protocol import Rate
from cong.engine.sequence import Sequence
from cong.models import NetworkSet, detokenize
from cong.schemas import Prompt, Role, SampleRecord, Score, Timings


def record_of(
    sequence: Sequence, prompt: Prompt, networks: NetworkSet, software: dict[str, str], writer: str, now: float
) -> SampleRecord:
    """Everything that is known of a finished sample."""
    assert sequence.finish_reason is not None, "only a finished sample has a record"
    completion = tuple(sequence.completion_token_ids)
    if sequence.text is not None:
        sequence.text.flush()
        text = sequence.text.text
    else:
        text = detokenize(networks.tokenizer, completion)
    admitted_at = now if sequence.admitted_at is None else sequence.admitted_at
    return SampleRecord(
        key=sequence.key,
        kind=sequence.parameters.kind,
        prompt=prompt,
        prompt_token_ids=sequence.prompt_token_ids,
        completion_text=text,
        completion_token_ids=completion,
        logprobs=_by_role(sequence, networks),
        mixture_logprobs=tuple(record.mixture_logprob for record in sequence.records),
        head_sizes=tuple(record.head_size for record in sequence.records),
        finish_reason=sequence.finish_reason,
        parameters=sequence.parameters,
        sample_index=sequence.sample_index,
        networks=networks.identities,
        tokenizer_fingerprint=networks.tokenizer.fingerprint,
        software=software,
        writer=writer,
        timings=Timings(
            queued_s=max(0.0, admitted_at - sequence.submitted_at),
            first_token_s=max(0.0, (sequence.first_token_at or admitted_at) - admitted_at),
            total_s=max(0.0, now - sequence.submitted_at),
        ),
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def score_of(sequence: Sequence, request: Rate, networks: NetworkSet) -> Score:
    """What is known of a scored completion, as far as it went."""
    return Score(
        prompt_id=request.prompt.prompt_id,
        completion_token_ids=sequence.targets[: len(sequence.records)],
        logprobs=_by_role(sequence, networks),
    )


def _by_role(sequence: Sequence, networks: NetworkSet) -> dict[Role, tuple[float, ...]]:
    return {
        identity.role: tuple(record.logprobs[k] for record in sequence.records)
        for k, identity in enumerate(networks.identities)
    }
