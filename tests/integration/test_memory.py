"""Control's memory does not grow with what a submitter may store within his quota."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.harness import MakeMesh
from tests.until import until
from tools.devmesh import DevMesh

MIB = 1024**2
TASKS, EACH = 60, 4 * MIB
# A call may hold a few specs at once (one for each reader, beside the one that is sent), never all.
MOST = 64 * MIB


def body(number: int) -> bytes:
    """Task 0, or one of those that need it."""
    spec = {
        "task_id": f"t{number}", "kind": "cli", "params": {"command": "true"},
        "inputs": {"f": {"inline": "x" * (EACH - 1000)}}, "labels": {"n": str(number)},
        "depends_on": ["t0"] if number else [], "not_before": "2190-01-01T00:00:00Z",
    }  # fmt: skip
    return json.dumps(spec).encode()


def call(mesh: DevMesh, method: str, path: str, data: bytes | None = None) -> bytes:
    address = urlsplit(mesh.url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=120)
    headers = {"Authorization": f"Bearer {mesh.credentials()['submit_token']}"}
    if data is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 300, text[:300]
        return text
    finally:
        connection.close()


def size(pid: int, what: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


@pytest.fixture(scope="module")
def full() -> Iterator[DevMesh]:
    """A control with a quarter of a GiB of specs."""
    with DevMesh(()) as mesh:
        for number in range(TASKS):
            call(mesh, "POST", "/tasks", body(number))
        yield mesh


def growth(mesh: DevMesh, what: Callable[[], object]) -> int:
    """By how much a freshly started control was larger at its largest than before."""
    mesh.control.stop()
    mesh.start_control()
    pid = mesh.pid("worker")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from now on
    before = size(pid, "VmRSS")
    what()
    return size(pid, "VmHWM") - before


@pytest.mark.parametrize("path", ["/tasks?limit=500", "/tasks?label=n=7", "/events?limit=1000"])
def test_a_list_costs_no_specs(full: DevMesh, path: str) -> None:
    assert growth(full, lambda: call(full, "GET", path)) < MOST


def test_large_details_are_read_one_after_the_other(full: DevMesh) -> None:
    """Fifteen callers ask for 8 MiB each, and read nothing of it."""
    half = "x" * (EACH - 1000)
    spec = {**json.loads(body(0)), "task_id": "large", "priority": 4}
    spec["inputs"] = {name: {"inline": half} for name in ("f", "g")}
    call(full, "POST", "/tasks", json.dumps(spec).encode())
    token = full.credentials()["submit_token"]
    head = f"GET /tasks/large HTTP/1.1\r\nHost: c\r\nAuthorization: Bearer {token}\r\n\r\n"

    def ask(stack: ExitStack) -> None:
        address = urlsplit(full.url)
        for _ in range(15):
            caller = stack.enter_context(socket.socket())
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.settimeout(60)
            caller.connect((str(address.hostname), int(address.port or 0)))
            caller.sendall(head.encode())
            assert caller.recv(12) == b"HTTP/1.1 200"

    with ExitStack() as stack:
        assert growth(full, lambda: ask(stack)) < MOST
    view = json.loads(call(full, "GET", "/tasks/large"))
    assert (view["task_id"], view["state"], view["spec"]["priority"]) == ("large", "waiting", 4)
    assert view["spec"]["inputs"]["g"]["inline"] == half


# A process counts what its parent held when it was forked: a small one in between.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_a_check_of_the_ledger_costs_no_specs(full: DevMesh) -> None:
    check = [sys.executable, "-m", "rae_control.cli.rae_control", "check", "--data", str(full.data)]
    command = [sys.executable, "-c", PEAK, *check]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 160 * MIB


def test_the_end_of_a_task_costs_no_specs_of_those_that_need_it(full: DevMesh) -> None:
    def cancel() -> None:
        call(full, "POST", "/tasks/t0/cancel", b"{}")
        last = f"/tasks/t{TASKS - 1}/result"
        until(lambda: b"dependency failed" in call(full, "GET", last), "all have ended", 30)

    assert growth(full, cancel) < MOST


def test_a_page_of_long_labels_ends_early_and_goes_on(make_mesh: MakeMesh) -> None:
    mesh = make_mesh()
    labels = {f"n{number}": "ü" * 500 for number in range(32)}
    spec = {"kind": "cli", "params": {"command": "true"}, "labels": labels}
    for _ in range(2):
        mesh.rae.submit([spec] * 200)
    seen, cursor, pages = 0, None, 0
    while True:
        page = mesh.rae.tasks(limit=500, cursor=cursor)
        seen, pages, cursor = seen + len(page.tasks), pages + 1, page.next
        if cursor is None:
            break
    assert (seen, pages > 2) == (400, True)
