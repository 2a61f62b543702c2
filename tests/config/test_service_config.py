"""The service's settings refuse what would be unsafe or could never work."""

import pytest

from cong.config import ServiceConfig


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org", "127.0.0.1.example.org"])
def test_an_address_that_others_can_reach_needs_keys(host: str) -> None:
    with pytest.raises(ValueError, match="there are no keys"):
        ServiceConfig(host=host)
    assert ServiceConfig(host=host, api_keys_env="KEYS").has_keys
    assert ServiceConfig(host=host, api_keys_file="keys").has_keys


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_one_s_own_machine_needs_none(host: str) -> None:
    assert not ServiceConfig(host=host).has_keys


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="could never be taken"):
        ServiceConfig(max_samples=10, max_waiting=9)
    with pytest.raises(ValueError, match=r"default_deadline_s is 700\.0, more than"):
        ServiceConfig(default_deadline_s=700, max_deadline_s=600)
    with pytest.raises(ValueError, match="less than or equal to 65535"):
        ServiceConfig(port=70_000)
    assert not ServiceConfig().may_store_prompts, "keeping prompts is asked for"
