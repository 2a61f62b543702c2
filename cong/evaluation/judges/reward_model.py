"""A judge that is a reward model: a network with one output for the whole sequence of prompt and answer."""

import logging
import math
from collections.abc import Iterator, Sequence

from cong.config.evaluation import RewardModelJudge
from cong.config.models import ModelsConfig
from cong.errors import EvaluationError, ModelError, RequestError
from cong.evaluation.answers import Answer
from cong.evaluation.judging import Measurement, Reading
from cong.models import (
    Tokenizer,
    check_reward_model,
    encode_completion,
    fingerprint_reward_model,
    fingerprint_tokenizer,
    load_reward_model,
    open_artefact,
    prompt_token_ids,
    render_chat,
)
from cong.schemas import Message, content_key

logger = logging.getLogger(__name__)


class RewardModelScore:
    """Batches of answers through a reward model; what does not fit loses its first tokens, and that is said."""

    def __init__(self, name: str, settings: RewardModelJudge, models: ModelsConfig) -> None:
        self.name = name
        self.sums_tokens = False
        self.reward_ends = (-math.inf, math.inf)
        self._settings = settings
        self._models = models
        self._template = None if models.chat_template is None else models.chat_template.read_text(encoding="utf-8")
        network = settings.network
        self.about = f"reward model {network.source}, {settings.rendering} rendering, {models.dtype}"
        artefact = open_artefact(network.source, revision=network.revision, root=models.root)
        check_reward_model(artefact)
        self.fingerprint = content_key(
            [
                "reward model",
                fingerprint_reward_model(artefact.folder),
                fingerprint_tokenizer(artefact.folder, self._template),
                models.dtype,
                settings.rendering,
                settings.max_tokens,
            ]
        )

    def measure(self, answers: Sequence[Answer]) -> Iterator[Reading]:
        """Rewards, sequences of similar length together."""
        settings, models = self._settings, self._models
        model = load_reward_model(
            settings.network.source,
            dtype=models.dtype,
            device=models.device,
            revision=settings.network.revision,
            root=models.root,
            chat_template=self._template,
        )
        limits = [limit for limit in (settings.max_tokens, model.context_length) if limit]
        room = min(limits) if limits else None
        # What it reads alike it reads once: another batch rounds otherwise, and equal answers would be no tie.
        alike: dict[tuple[int, ...], list[Answer]] = {}
        for answer in answers:
            ids = tuple(render(answer, model.tokenizer, settings.rendering))
            if not ids:
                raise EvaluationError(f"{answer.where} has no tokens for reward model {model.name}")
            alike.setdefault(ids, []).append(answer)
        if num_long := sum(len(group) for ids, group in alike.items() if room is not None and len(ids) > room):
            logger.warning(
                "judge %s: %d of %d sequences are longer than %s tokens and lose their first ones",
                self.name,
                num_long,
                len(answers),
                room,
            )
        sequences = sorted(alike, key=len)
        for start in range(0, len(sequences), settings.batch_size):
            part = sequences[start : start + settings.batch_size]
            rewards = model.rewards([ids[-room:] if room else ids for ids in part])
            for ids, reward in zip(part, rewards, strict=True):
                num_cut = max(0, len(ids) - room) if room else 0
                for answer in alike[ids]:
                    yield Reading(answer, reward, len(ids) - num_cut, num_cut)

    def is_enough(self, answer: Answer, measurement: Measurement) -> bool:
        """A number is all there is."""
        return True

    def reward(self, measurement: Measurement) -> float:
        """The number itself."""
        return measurement.value


def render(answer: Answer, tokenizer: Tokenizer, rendering: str) -> list[int]:
    """Prompt and answer as the ids that a reward model reads."""
    prompt = answer.prompt
    if prompt.token_ids:
        raise EvaluationError(
            f"{answer.where}: the prompt is given as token ids, which only their own network can read"
        )
    is_chat = rendering == "chat" or (rendering == "auto" and tokenizer.chat_template is not None)
    try:
        if is_chat:
            asked = prompt.messages or (Message(role="user", content=prompt.text or ""),)
            said = Message(role="assistant", content=answer.text)
            return render_chat(tokenizer, (*asked, said), add_generation_prompt=False)
        before = prompt_token_ids(tokenizer, prompt)
    except (RequestError, ModelError) as error:
        raise EvaluationError(f"{answer.where} cannot be shown to a reward model: {error}") from error
    ids = [*before, *encode_completion(tokenizer, answer.text)]
    if tokenizer.eos_id is not None and not answer.is_truncated:
        ids.append(tokenizer.eos_id)
    return ids
