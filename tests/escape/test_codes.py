"""Every error code that a submitter can meet, from a real task, in words that help."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from rae_protocol import models
from tests.escape.harness import NODE, make_mesh, running, supervisor
from tests.messages import faults
from tests.until import until
from tools.devmesh import DevMesh

# Its own: another checkout may run the same tests now.
MARKER = f"{500 + os.getpid() // 1000 % 100}.{os.getpid() % 1000:03d}"
CLI: dict[str, Any] = {"kind": "cli", "max_attempts": 1}
SLEEP = {"params": {"command": "sleep", "args": [MARKER]}}
ECHO = {"params": {"command": "echo", "args": ["x"]}}
BODIES: dict[str, dict[str, Any]] = {
    "E_DENY": {**CLI, "params": {"command": "rm", "args": ["-rf", "."]}},
    "E_INVALID": {**CLI, "params": {"command": "echo", "argv": ["x"]}},
    "E_INPUT": {**CLI, **ECHO, "inputs": {"a": {"url": "http://127.0.0.1:1/a"}}},
    "E_TIMEOUT": {**CLI, **SLEEP, "timeout_s": 1},
    "E_ARTIFACT": {**CLI, **ECHO, "artifacts": [{"name": "a"}, {"name": "b"}]},
    "E_OOM": {
        "kind": "python", "max_attempts": 1,
        "params": {"task": "harm", "params": {"what": "memory", "args": {}}},
    },
    "E_LOST": {**CLI, **SLEEP},
    "E_YIELD": {**CLI, **SLEEP},
}  # fmt: skip


@pytest.fixture(scope="module")
def strict() -> Iterator[DevMesh]:
    """A mesh in which one interruption is one too many."""
    settings = {**NODE, "input_url_hosts": ["127.0.0.1"]}
    with make_mesh(node=settings, control={"max_interruptions": 1}) as mesh:
        yield mesh


def kill_supervisor(mesh: DevMesh) -> None:
    os.kill(supervisor(mesh), signal.SIGKILL)


def come_back(mesh: DevMesh) -> None:
    mesh.nodes["n1"].owner("pause")


def ended(mesh: DevMesh, code: str) -> models.TaskView:
    task_id = mesh.rae.submit([BODIES[code]])[0].task_id
    happens = {"E_LOST": kill_supervisor, "E_YIELD": come_back}.get(code)
    if happens is not None:
        until(lambda: mesh.rae.task(task_id).state == "running", f"{code}: it runs", 20)
        until(lambda: running(MARKER), "its program", 20)
        happens(mesh)
    view = mesh.rae.wait(task_id, 60)
    if happens is come_back:
        mesh.nodes["n1"].owner("resume")
    return view


@pytest.mark.parametrize("code", BODIES)
def test_an_error_code_is_reached_by_a_real_task_and_reads_well(
    strict: DevMesh, code: str, record_property: Any
) -> None:
    view = ended(strict, code)
    assert view.error is not None
    record_property("layer", code)
    record_property("said", view.error.message)
    assert (view.state, view.error.code) == ("failed", code), view.error
    assert faults(view.error.message) == []
