"""One mesh whose node takes no task outside a box, and a bystander that must not notice it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rae_node.errors import NodeError
from rae_node.isolation.bubblewrap import prepared, tried
from tests.escape.harness import CHECKOUT, LEVEL, make_mesh
from tests.until import until
from tools.devmesh import DevMesh


def pytest_collection_modifyitems() -> None:
    if os.geteuid() == 0 and LEVEL != "unit":
        raise pytest.UsageError("tasks never run as root; run these tests with `make test-escape`")
    if LEVEL != "unit":
        try:
            tried(prepared())
        except NodeError as error:
            raise pytest.UsageError(f"no box can be made here: {error.message}") from error


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each attempt: what it was, what came of it, and the layer that stopped it."""
    terminalreporter.section("attempts")
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            facts = dict(getattr(report, "user_properties", []))
            if report.when == "call" and "layer" in facts:
                name = report.nodeid.rpartition("::")[2].removeprefix("test_")
                name = name.partition("[")[2].rstrip("]") or name
                word = "stopped" if outcome == "passed" else "ESCAPED"
                said = str(facts.get("said", ""))[:90]
                terminalreporter.write_line(f"{word}  {name:34.34} {facts['layer']:32} {said}")


@pytest.fixture(scope="session")
def mesh() -> Iterator[DevMesh]:
    with make_mesh() as running:
        yield running


@pytest.fixture(scope="session")
def facts(mesh: DevMesh) -> Iterator[dict[str, Any]]:
    """What an attacker would like to reach, by its real name."""
    root = mesh.nodes["n1"].root
    paths = [mesh.data, mesh.data / "credentials.json", mesh.data / "ledger.db", root]
    paths += [root / "agent/enrolment.json", root / "spool", root / "workdir", root / "logs"]
    paths += [root / "run/rae-node.sock", root / "run/lock"]
    assert all(path.exists() for path in paths), [path for path in paths if not path.exists()]
    with socket.socket(socket.AF_UNIX) as listener:
        name = f"rae-escape-{os.getpid()}"
        listener.bind(f"\0{name}")
        listener.listen()
        yield {
            "agent": mesh.nodes["n1"].pid, "paths": [str(path) for path in paths],
            "port": int(mesh.url.rpartition(":")[2]), "abstract": name,
            "homes": ["/home", *{str(Path(home).expanduser()) for home in ("~", "~root")}],
            "checkout": str(CHECKOUT), "data": str(mesh.data),
        }  # fmt: skip


@pytest.fixture(scope="session")
def bystander(mesh: DevMesh) -> Iterator[None]:
    """The agent and another task go on, whatever a neighbour does."""
    agent = mesh.nodes["n1"].pid
    work = [{"kind": "cli", "params": {"command": "sleep", "args": ["3600"]}, "timeout_s": 3600}]
    task_id = mesh.rae.submit(work)[0].task_id
    until(lambda: mesh.admin.task(task_id).state == "running", "the bystander runs", 20)
    yield
    view = mesh.admin.task(task_id)
    assert (view.state, len(view.history)) == ("running", 1), view.history
    assert (mesh.nodes["n1"].pid, mesh.nodes["n1"].running) == (agent, True)
    mesh.admin.cancel(task_id)
