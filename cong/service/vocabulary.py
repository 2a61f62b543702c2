"""The deployment's tokenizer as the service uses it: prompts to ids, ids to text. Knows no networks."""

from cong.engine.text import TextStream
from cong.errors import InvalidRequest
from cong.models import Tokenizer, detokenize, encode_completion, prompt_token_ids
from cong.schemas import Prompt, SampleRecord
from cong.wire import TokenEvent


class Vocabulary:
    """A tokenizer, and how many of its ids the networks know."""

    def __init__(self, tokenizer: Tokenizer, num_tokens: int, text_fingerprint: str) -> None:
        self._tokenizer = tokenizer
        self.num_tokens = num_tokens
        self.fingerprint = tokenizer.fingerprint
        self.text_fingerprint = text_fingerprint
        """That of the tokenizer and of all ends of sequence, by which samples are known."""
        self._shown: dict[int, str] = {}

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """What stands in front of every text that is encoded as a prompt."""
        return self._tokenizer.prefix_ids

    def encode(self, prompt: Prompt, field: str = "prompt") -> tuple[int, ...]:
        """Token ids of a prompt in any of its forms."""
        ids = prompt_token_ids(self._tokenizer, prompt)
        if prompt.token_ids:
            self.require(ids, f"{field}.token_ids")
        if not ids:
            raise InvalidRequest(f"{field}.text", "has no tokens, and the tokenizer puts none in front; give some text")
        return ids

    def encode_completion(self, text: str) -> tuple[int, ...]:
        """Token ids of a text that continues a prompt."""
        return tuple(encode_completion(self._tokenizer, text))

    def require(self, token_ids: tuple[int, ...], field: str) -> None:
        """Refuse ids that no network knows."""
        wrong = next((token_id for token_id in token_ids if token_id >= self.num_tokens), None)
        if wrong is not None:
            raise InvalidRequest(field, f"holds {wrong}, and the tokenizer has ids 0 to {self.num_tokens - 1}")

    def show(self, token_id: int) -> str:
        """One token as text, control tokens by their names."""
        text = self._shown.get(token_id)
        if text is None:
            text = self._shown[token_id] = detokenize(self._tokenizer, (token_id,), with_special_tokens=True)
        return text

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """The text of ids, control tokens left out."""
        return detokenize(self._tokenizer, token_ids)

    def replay(self, prompt_index: int, record: SampleRecord) -> list[TokenEvent]:
        """The tokens of a finished sample with the text that each made certain."""
        stream = TextStream(lambda ids: detokenize(self._tokenizer, tuple(ids)), record.parameters.stop)
        pieces = [
            stream.push(token_id, can_stop=number > record.parameters.min_tokens)
            for number, token_id in enumerate(record.completion_token_ids, 1)
        ]
        if pieces:
            pieces[-1] = record.completion_text[sum(map(len, pieces[:-1])) :]
        return [
            TokenEvent(
                prompt_index=prompt_index,
                sample_index=record.sample_index,
                text=piece,
                token_id=token_id,
                mixture_logprob=logprob,
            )
            for piece, token_id, logprob in zip(
                pieces, record.completion_token_ids, record.mixture_logprobs, strict=True
            )
        ]
