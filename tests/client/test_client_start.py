"""Addresses, keys, what is imported, and what is not installed."""

import subprocess
import sys

import pytest

from cong.client import AsyncClient, Client, Patience
from cong.client.service import service_url
from cong.errors import ConfigError


def in_a_fresh_interpreter(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_the_client_loads_neither_torch_nor_numpy_nor_transformers() -> None:
    packages = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(
        in_a_fresh_interpreter(f"import cong.client, cong.client.bulk, cong.client.ledger; {packages}").split()
    )
    assert {"httpx", "pydantic"} <= loaded
    assert not loaded & {"torch", "numpy", "transformers", "pyarrow", "ray", "fastapi"}


def test_without_httpx_the_extra_is_named() -> None:
    program = """
import sys
sys.modules["httpx"] = None
from cong.errors import MissingExtra
try:
    import cong.client
except MissingExtra as error:
    print(error.extra, "|", error)
"""
    extra, _, message = in_a_fresh_interpreter(program).partition(" | ")
    assert extra == "client"
    assert "pip install -c constraints.txt -e '.[client]'" in message


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_address_and_key_come_from_the_environment(
    make: type[Client | AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="set CONG_URL"):
        make()
    monkeypatch.setenv("CONG_URL", "http://127.0.0.1:8000/prefix/")
    monkeypatch.setenv("CONG_API_KEY", "secret-key\n")
    client = make()
    assert client.url == "http://127.0.0.1:8000/prefix"
    assert client._service.headers["Authorization"] == "Bearer secret-key"
    assert "secret" not in repr(client) + repr(vars(client)["_service"])
    assert make("https://other").url == "https://other"
    assert "Authorization" not in make("https://other", "")._service.headers


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "ftp://host", "http://", "http://user:pass@host", "http://host/?a=1", "http://host/#x"),
        *("http://host:99999", "http://host:0", "http://host:x", "http://[::1"),
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        service_url(url)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("key", ["two words", "naïve", "tab\tbed"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Client("http://host", key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"total_s": 0.0}, {"max_tries": 0}, {"first_pause_s": 2.0, "max_pause_s": 1.0}])
def test_patience_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"give|must"):
        Patience(**wrong)  # type: ignore[arg-type]
