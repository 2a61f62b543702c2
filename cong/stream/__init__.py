"""The stream: an append-only log of samples in immutable, self-checking Parquet segments, and its exact readers.

Sampling writes it, training reads it; neither knows the other. Knows no engine, no training and no HTTP.
"""

from cong.stream.buffer import Ack, Level
from cong.stream.columns import SCHEMA, Ragged, ragged, to_records
from cong.stream.compact import Compaction, compact
from cong.stream.cursor import Cursor, Draw
from cong.stream.index import Place
from cong.stream.listing import Listing, Span, list_stream
from cong.stream.names import Lane
from cong.stream.place import require_place
from cong.stream.reader import StreamReader
from cong.stream.retention import Retention, retain
from cong.stream.store import Store, open_store
from cong.stream.verify import Problem, Report, verify
from cong.stream.writer import StreamWriter

__all__ = [
    "SCHEMA",
    "Ack",
    "Compaction",
    "Cursor",
    "Draw",
    "Lane",
    "Level",
    "Listing",
    "Place",
    "Problem",
    "Ragged",
    "Report",
    "Retention",
    "Span",
    "Store",
    "StreamReader",
    "StreamWriter",
    "compact",
    "list_stream",
    "open_store",
    "ragged",
    "require_place",
    "retain",
    "to_records",
    "verify",
]
