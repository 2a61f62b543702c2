"""Requests to an engine to a stream and back, as plain async Python: validated, bounded, durable before answered.

Knows no HTTP and no Ray, and of the engine only its protocol.
"""

from cong.service.answer import Answer, Batch, usage_of
from cong.service.archive import Archive
from cong.service.building import facts_of, open_service
from cong.service.facts import Facts
from cong.service.idempotency import RetryKey
from cong.service.keys import KeyRing, hash_key, key_line, new_key
from cong.service.metrics import METRICS, Family, Meter, Metric
from cong.service.service import SampleService
from cong.service.vocabulary import Vocabulary

__all__ = [
    "METRICS",
    "Answer",
    "Archive",
    "Batch",
    "Facts",
    "Family",
    "KeyRing",
    "Meter",
    "Metric",
    "RetryKey",
    "SampleService",
    "Vocabulary",
    "facts_of",
    "hash_key",
    "key_line",
    "new_key",
    "open_service",
    "usage_of",
]
