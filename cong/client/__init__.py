"""The typed HTTP client: tries again under the same key, honours Retry-After, refuses an answer that was cut.

Needs httpx and pydantic; knows no torch, no engine and no file of prompts.
"""

from cong.errors import MissingExtra

try:
    import httpx  # noqa: F401  (only to see that it is there)
except ModuleNotFoundError as error:
    raise MissingExtra("client", "httpx") from error

from cong.client.async_client import AsyncClient
from cong.client.calls import Prompts, SampleOptions
from cong.client.client import Client
from cong.client.patience import Patience

__all__ = ["AsyncClient", "Client", "Patience", "Prompts", "SampleOptions"]
