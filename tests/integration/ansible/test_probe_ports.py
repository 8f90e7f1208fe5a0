"""What playbooks/verify.yml finds of control's ports, from a node and from outside."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "playbooks" / "files" / "probe_ports.py"
HERE = "127.0.0.1"


@pytest.fixture
def ports() -> Iterator[tuple[int, int, int]]:
    """Two ports that answer, and one that does not."""
    with (
        socket.create_server((HERE, 0)) as api,
        socket.create_server((HERE, 0)) as other,
        socket.create_server((HERE, 0)) as closed,
    ):
        shut: int = closed.getsockname()[1]
        closed.close()
        yield api.getsockname()[1], other.getsockname()[1], shut


def probe(targets: list[Any], **control: Any) -> tuple[list[Any], dict[str, dict[str, Any]]]:
    """The answers, and the findings by their names."""
    request: dict[str, Any] = {"targets": targets}
    if control:
        request["control"] = {"tailnet": HERE, **control}
    done = subprocess.run(
        [sys.executable, PROGRAM, json.dumps(request)], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    return told["answers"], {one["check"]: one for one in told["findings"]}


def test_without_control_there_are_answers_alone(ports: tuple[int, int, int]) -> None:
    api, _, shut = ports
    answers, found = probe([[HERE, [api, shut]]])
    assert sorted(answers) == sorted([[HERE, api, "open"], [HERE, shut, "refused"]])
    assert found == {}


def test_a_node_may_reach_the_allowed_ports_alone(ports: tuple[int, int, int]) -> None:
    api, other, shut = ports
    where = [[HERE, list(ports)]]
    # ansible-core before 2.19 converts numbers to text.
    _, found = probe(where, vantage="node", api=str(api), allowed=[api, str(other)])
    assert [one["ok"] for one in found.values()] == [True, True]
    _, found = probe(where, vantage="node", api=api, allowed=[api])
    assert found["A14 nodes cannot reach database ports"]["ok"] is False
    assert found["A14 nodes cannot reach database ports"]["what"] == f"open: {HERE} {other}"
    assert found["the API answers the node"]["ok"] is True
    _, found = probe(where, vantage="node", api=shut, allowed=[api, other])
    assert found["the API answers the node"]["ok"] is False


def test_from_outside_no_port_may_answer(ports: tuple[int, int, int]) -> None:
    api, _, shut = ports
    _, found = probe([[HERE, [api, shut]]], vantage="outside", api=api, allowed=[api])
    assert [(name, one["ok"]) for name, one in found.items()] == [
        ("no port of control answers outside", False)
    ]
    _, found = probe([[HERE, [shut]]], vantage="outside", api=api, allowed=[api])
    assert found["no port of control answers outside"]["ok"] is True
