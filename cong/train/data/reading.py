"""Whether samples' tokens say to the network that is trained what they said to whoever drew them. Knows no tensors."""

import pyarrow as pa

from cong.errors import ConfigError
from cong.models import Tokenizer, detokenize
from cong.stream import Draw, StreamReader

FINGERPRINT = "tokenizer_fingerprint"
_READ = ("key", "completion_text", "completion_token_ids", FINGERPRINT)


class Reading:
    """The tokenizers whose samples the network's own reads as they were drawn.

    Tokenizers may differ in what does not matter here, as in the chat template. Each is judged once, by the first of
    its samples that are met.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known = {tokenizer.fingerprint}

    def require(self, reader: StreamReader, draw: Draw, table: pa.Table) -> None:
        """Refuse a draw with samples that read otherwise; `table` holds it, FINGERPRINT among its columns."""
        for fingerprint in sorted({*table.column(FINGERPRINT).unique().to_pylist()} - self._known):
            self._judge(reader, draw, fingerprint)

    def _judge(self, reader: StreamReader, draw: Draw, fingerprint: str) -> None:
        found = [
            (row["key"], row["completion_text"], detokenize(self._tokenizer, row["completion_token_ids"]))
            for row in reader.fetch(draw, _READ).to_pylist()
            if row[FINGERPRINT] == fingerprint and row["completion_text"]
        ]
        if not found:
            return
        # A text may lack its stop string, or what is not a whole character.
        if not any(read.startswith(said) for _, said, read in found):
            key, said, read = found[0]
            raise ConfigError(
                f"samples at {reader.location} have token ids of another tokenizer: {key} says {said!r}, and the "
                f"network's tokenizer reads {read!r}; sample a pair that shares it, or let `cong pipeline` encode the "
                "text anew"
            )
        self._known.add(fingerprint)
