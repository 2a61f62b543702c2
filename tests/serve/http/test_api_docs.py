"""Every request that docs/api.md shows is sent, and what it shows of the reply is compared."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.conftest import World
from tests.serve.http.hosting import lines, server, sse
from tests.service.serving import LIMIT_S, folder_store, open_archive
from tests.test_docs import DOCS, Block, blocks_of

PAGE = DOCS / "api.md"
SHOWN_ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def address(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    archive = open_archive(folder_store(Path(tmp_path_factory.mktemp("docs"))))
    with server(world, archive=archive) as (address, _):
        yield address


def send(address: str, block: Block) -> Any:
    """The reply to a request as the page writes it."""
    head, _, body = block.text.partition("\n\n")
    first, *rest = head.splitlines()
    method, path = first.split()
    headers = dict(line.split(": ", 1) for line in rest)
    sent = json.loads(body) if body.strip() else None
    response = httpx.request(method, address + path, headers=headers, json=sent, timeout=LIMIT_S)
    kind = response.headers["content-type"]
    if kind == "application/json":
        document = response.json()
        return document if response.is_success else {"status": response.status_code, **document}
    return lines(response.text) if kind == "application/x-ndjson" else [json.loads(data) for data in sse(response.text)]


def differences(shown: Any, found: Any, place: str = "reply") -> list[str]:
    """Where a reply is not what is shown of it; "..." stands for anything that is there."""
    if shown == "...":
        return [] if found not in (None, "", [], {}) else [f"{place} is empty"]
    if isinstance(shown, dict) and isinstance(found, dict):
        return [
            problem
            for name, value in shown.items()
            for problem in (
                differences(value, found[name], f"{place}.{name}") if name in found else [f"{place}.{name} is missing"]
            )
        ]
    if isinstance(shown, list) and isinstance(found, list):
        if len(shown) != len(found):
            return [f"{place} has {len(found)} entries, not {len(shown)}"]
        return [
            problem
            for number, (ours, theirs) in enumerate(zip(shown, found, strict=True))
            for problem in differences(ours, theirs, f"{place}[{number}]")
        ]
    return [] if shown == found else [f"{place} is {found!r}, not {shown!r}"]


def test_every_request_is_answered_as_shown(address: str) -> None:
    blocks = blocks_of(PAGE, "http", "json")
    assert [block.language for block in blocks] == ["http", "json"] * (len(blocks) // 2)
    assert len(blocks) >= 20
    for request, reply in zip(blocks[::2], blocks[1::2], strict=True):
        problems = differences(json.loads(reply.text), send(address, request))
        assert not problems, f"{PAGE.name}:{request.line}: {problems}"


def test_a_difference_is_noticed() -> None:
    assert differences({"a": [1, {"b": "..."}]}, {"a": [1, {"b": 2}], "c": 3}) == []
    assert len(differences({"a": 1, "b": "...", "c": [1]}, {"a": 2, "b": [], "c": [1, 2]})) == 3
    assert differences({"a": {"b": 1}}, {"a": {}}) == ["reply.a.b is missing"]


def test_the_client_s_example_runs(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks_of(PAGE, "py")
    assert SHOWN_ADDRESS in block.text
    exec(compile(block.text.replace(SHOWN_ADDRESS, address), str(PAGE), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


def test_every_route_and_every_error_type_is_on_the_page(address: str) -> None:
    from serve.http.errors import TABLE

    text = PAGE.read_text(encoding="utf-8")
    schema = httpx.get(f"{address}/openapi.json", timeout=LIMIT_S).json()
    assert not [path for path in schema["paths"] if path not in text and "{" not in path]
    table = re.findall(r"^\| ([\d, ]+) \| `(\w+)` \|", text, re.MULTILINE)
    told = {(int(status), kind) for statuses, kind in table for status in statuses.split(",")}
    assert {(kind.status, kind.type) for kind in TABLE.values()} <= told
