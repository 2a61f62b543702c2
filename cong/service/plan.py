"""From what is asked to what the engine is given: parameters resolved, prompts encoded, limits checked.

Everything that can be refused is refused here, before the engine sees any of it. Knows no threads and no HTTP.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from cong.decoding import Parametrisation, parametrise
from cong.engine import Generate, Rate
from cong.errors import ConfigError, InvalidRequest, PromptTooLong
from cong.schemas import NetworkIdentity, Prompt, SamplingParameters, ScoreRequest, sample_keys
from cong.service.vocabulary import Vocabulary
from cong.wire import Limits, SampleCall
from cong.wording import first_cause

_PRESCRIBED = ("weights", "network_temperatures", "head_lambda")


@dataclass(frozen=True)
class Question:
    """One prompt with everything that its samples depend on."""

    prompt: Prompt
    token_ids: tuple[int, ...]
    parameters: SamplingParameters
    keys: tuple[str, ...]
    """Of its samples, in order of their index; empty unless they are to be looked up."""


@dataclass(frozen=True)
class Plan:
    """A request that can be served."""

    questions: tuple[Question, ...]
    num_samples: int
    """Of each question."""

    @property
    def num_samples_in_all(self) -> int:
        """Over all questions."""
        return len(self.questions) * self.num_samples

    @property
    def num_prompt_tokens(self) -> int:
        """Each prompt counted once."""
        return sum(len(question.token_ids) for question in self.questions)

    def requests(self, request_id: str, known: Sequence[str], deadline_s: float, streams: bool) -> dict[int, Generate]:
        """What is to be generated of each question, by its number, without the samples whose key is known."""
        found = frozenset(known)
        wanted = {}
        for number, question in enumerate(self.questions):
            indices = tuple(range(self.num_samples))
            if found:
                indices = tuple(index for index in indices if question.keys[index] not in found)
            if indices:
                wanted[number] = Generate(
                    f"{request_id}.{number}",
                    question.prompt,
                    question.parameters,
                    indices,
                    deadline_s,
                    streams,
                    question.token_ids,
                )
        return wanted


class Planner:
    """The rules of one deployment."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        identities: tuple[NetworkIdentity, ...],
        defaults: SamplingParameters,
        limits: Limits,
    ) -> None:
        self._vocabulary = vocabulary
        self._identities = identities
        self._defaults = defaults
        self._limits = limits

    def plan(self, call: SampleCall, has_keys: bool) -> Plan:
        """What a request for samples comes to; keys are computed only where they are asked for."""
        self._require_few(len(call.prompts), call.num_samples)
        parameters = self.resolve(call)
        is_length_given = call.parameters is not None and "max_tokens" in call.parameters.model_fields_set
        questions = []
        for number, prompt in enumerate(call.prompts):
            token_ids = self._vocabulary.encode(prompt, f"prompts.{number}")
            fitted = self._fit(parameters, len(token_ids), is_length_given)
            questions.append(
                Question(prompt, token_ids, fitted, self._keys(token_ids, fitted, call.num_samples) if has_keys else ())
            )
        return Plan(tuple(questions), call.num_samples)

    def encode(self, prompts: Sequence[Prompt], num_samples: int) -> list[tuple[int, ...]]:
        """Token ids of prompts that are to be told `num_samples` times each, within the limits of samples."""
        self._require_few(len(prompts), num_samples)
        encoded = [self._vocabulary.encode(prompt, f"prompts.{number}") for number, prompt in enumerate(prompts)]
        for token_ids in encoded:
            self._require_room(len(token_ids), 0, "max_tokens asks for")
        return encoded

    def plan_scores(self, items: Sequence[ScoreRequest], request_id: str, deadline_s: float) -> list[Rate]:
        """What a request for scores comes to."""
        if len(items) > self._limits.max_samples:
            raise InvalidRequest(
                "items", f"there are {len(items)}; a request may hold {self._limits.max_samples}: send several"
            )
        requests = []
        for number, item in enumerate(items):
            prompt_ids = self._vocabulary.encode(item.prompt, f"items.{number}.prompt")
            targets = item.completion_token_ids
            if item.completion_text is not None:
                targets = self._vocabulary.encode_completion(item.completion_text)
                if not targets:
                    raise InvalidRequest(f"items.{number}.completion_text", "has no tokens; give some text to score")
            self._vocabulary.require(targets, f"items.{number}.completion_token_ids")
            self._require_room(len(prompt_ids), len(targets), "the completion has")
            requests.append(Rate(f"{request_id}.{number}", item.prompt, targets, deadline_s, prompt_ids))
        return requests

    def resolve(self, call: SampleCall) -> SamplingParameters:
        """The parameters of a request: the deployment's own, the method's over them, and the request's over both."""
        given = {}
        if call.parameters is not None:
            given = {name: getattr(call.parameters, name) for name in call.parameters.model_fields_set}
        prescribed = {} if call.method is None else self._prescribe(call.method, call.method_parameters, given)
        if not given and not prescribed:
            parameters = self._defaults
        else:
            try:
                parameters = SamplingParameters.model_validate({**dict(self._defaults), **prescribed, **given})
            except ValidationError as error:
                name, words = first_cause(error.errors(), "")
                raise InvalidRequest(f"parameters.{name}".rstrip("."), words) from error
        self._require_usable(parameters)
        return parameters

    def _prescribe(self, method: str, own: dict[str, float], given: dict[str, object]) -> dict[str, object]:
        try:
            preset: Parametrisation = parametrise(method, **own)
        except ConfigError as error:
            raise InvalidRequest("method", str(error)) from error
        prescribed: dict[str, object] = {name: getattr(preset, name) for name in _PRESCRIBED}
        if preset.temperature is not None:
            prescribed["temperature"] = preset.temperature
        twice = sorted(prescribed.keys() & given.keys())
        if twice:
            raise InvalidRequest(
                f"parameters.{twice[0]}",
                f"is prescribed by the method {method!r}; leave it out, use method_parameters, or name no method",
            )
        return prescribed

    def _require_usable(self, parameters: SamplingParameters) -> None:
        num_networks = len(self._identities)
        if len(parameters.weights) != num_networks:
            roles = ", ".join(identity.role for identity in self._identities)
            raise InvalidRequest(
                "parameters.weights",
                f"has {len(parameters.weights)} entries, and this deployment holds {num_networks} network(s) "
                f"({roles}); give one weight for each",
            )
        self._vocabulary.require(parameters.exempt_token_ids, "parameters.exempt_token_ids")
        self._vocabulary.require(parameters.stop_token_ids, "parameters.stop_token_ids")

    def _fit(self, parameters: SamplingParameters, num_prompt: int, is_length_given: bool) -> SamplingParameters:
        """A length that nobody asked for is cut to the room there is; one that was asked for is checked."""
        if is_length_given:
            if parameters.max_tokens > self._limits.max_new_tokens:
                raise InvalidRequest(
                    "parameters.max_tokens",
                    f"is {parameters.max_tokens}; a sample may have {self._limits.max_new_tokens} new tokens here",
                )
            self._require_room(num_prompt, parameters.max_tokens, "max_tokens asks for")
            return parameters
        self._require_room(num_prompt, max(1, parameters.min_tokens), "at least", " must fit behind it")
        room = min(self._limits.max_new_tokens, self._limits.max_total_tokens - num_prompt)
        if parameters.max_tokens <= room:
            return parameters
        return parameters.model_copy(update={"max_tokens": room})

    def _require_room(self, num_prompt: int, num_more: int, what: str, rest: str = " more") -> None:
        limit = self._limits.max_total_tokens
        if num_prompt + num_more > limit:
            raise PromptTooLong(
                f"the prompt has {num_prompt} tokens and {what} {num_more}{rest}; together they may be {limit} here; "
                "shorten one of them"
            )

    def _require_few(self, num_prompts: int, num_samples: int) -> None:
        num_asked = num_prompts * num_samples
        if num_asked > self._limits.max_samples:
            raise InvalidRequest(
                "num_samples",
                f"{num_prompts} prompt(s) with {num_samples} samples each are {num_asked} samples; a request may ask "
                f"for {self._limits.max_samples}: send several requests",
            )

    def _keys(self, token_ids: tuple[int, ...], parameters: SamplingParameters, num_samples: int) -> tuple[str, ...]:
        fingerprint = self._vocabulary.text_fingerprint
        return sample_keys(self._identities, fingerprint, token_ids, parameters, range(num_samples))
