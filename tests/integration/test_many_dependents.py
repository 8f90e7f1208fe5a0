"""The end of a task that thousands need does not delay the calls of others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import requests

from rae_control.maintenance.backup import check_folder
from rae_protocol import models
from rae_protocol.node_client import NodeClient
from tests.harness import MakeMesh
from tests.until import until
from tools.devmesh import DevMesh

MANY = 20_000
# On one core, all at once took over a second; a piece takes 10 ms, a busy machine some times that.
MOST_S = 0.5


def ask(mesh: DevMesh, path: str) -> str:
    headers = {"Authorization": f"Bearer {mesh.credentials()['admin_token']}"}
    answer = requests.get(mesh.url + path, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.text


class Other:
    """Somebody else, who writes all the time; `longest`: how long his slowest call took."""

    def __init__(self, mesh: DevMesh) -> None:
        self._rae, self._over, self.longest = mesh.rae, threading.Event(), 0.0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.005):
            began = time.monotonic()
            # Again, it changes nothing, and waits for the writer as every write does.
            self._rae.cancel("of-another")
            self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> Other:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def mesh(make_mesh: MakeMesh) -> Iterator[DevMesh]:
    mesh = make_mesh()
    spec = {"kind": "cli", "params": {"command": "true"}}
    mesh.rae.submit([{**spec, "task_id": "of-another"}])
    mesh.rae.cancel("of-another")
    mesh.rae.submit([{**spec, "task_id": "root"}])
    for _ in range(MANY // 1000):
        mesh.rae.submit([{**spec, "depends_on": ["root"]}] * 1000)
    yield mesh
    assert check_folder(mesh.data, deep=False) == []


def ended(mesh: DevMesh, state: str) -> bool:
    return f'rae_tasks{{state="{state}"}} {float(MANY)}' in ask(mesh, "/metrics")


def test_a_cancel_of_a_task_that_thousands_need(mesh: DevMesh) -> None:
    with Other(mesh) as other:
        assert mesh.rae.cancel("root").state.value == "cancelled"
        until(lambda: ended(mesh, "failed"), "all have ended", 120)
    assert other.longest < MOST_S


def test_a_success_that_thousands_wait_for_survives_a_kill(mesh: DevMesh) -> None:
    enrolled = mesh.admin.enrol("n")
    node = NodeClient(
        mesh.url, "n", enrolled.enrolment_secret, public_keys=enrolled.control_public_keys
    )
    node.register(models.RegisterRequest(node_id="n", slots=["cpu0"]))
    task = node.poll(wait_s=10, slots=["cpu0"]).task
    assert task is not None
    done = models.Result(
        task_id=task.task_id, attempt=task.attempt, lease_id=task.lease_id, status="succeeded"
    )
    with Other(mesh) as other:
        node.result(done)
    mesh.kill("worker")
    mesh.wait_ready()
    until(lambda: ended(mesh, "queued"), "all are queued", 120)
    assert other.longest < MOST_S
