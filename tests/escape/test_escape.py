"""What a task tries to see or harm, and the layer that stops it.

Every line is tried by real code from inside a real task, at level `bubblewrap`.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from rae_protocol import models
from tests.escape.harness import harm, python, running
from tests.escape.tasks import attempts
from tests.escape.tasks.attempts import NUMBERS
from tests.until import until
from tools.devmesh import DevMesh

pytestmark = pytest.mark.usefixtures("bystander")
MOUNTS, PIDS, NET, FILTER = "mount namespace", "PID namespace", "network namespace", "seccomp"
USER, LIMITS, WATCH = "user namespace, no capabilities", "resource limits", "supervisor's watch"
CLEAN = "clean start"

LOOKS = {
    "surroundings": CLEAN,  # first: others leave descriptors open
    "home_folders": MOUNTS, "source_checkout": MOUNTS, "data_folder": MOUNTS,
    "shadow": MOUNTS, "node_files": MOUNTS, "system_files": MOUNTS,
    "devices": MOUNTS, "agents_process": PIDS, "other_processes": PIDS, "init_of_box": PIDS,
    "mounting": FILTER, "new_namespaces": FILTER, "sockets": FILTER, "older_calls": FILTER,
    "terminal": FILTER, "hidden_descriptors": FILTER, "own_descriptors": FILTER,
    "space_without_writing": FILTER, "special_bits": FILTER, "network": NET, "privileges": USER,
    "setuid_files": USER, "priority": USER, "raised_limits": LIMITS,
    "core_dump": LIMITS, "open_files": LIMITS, "locked_memory": LIMITS,
}  # fmt: skip
BOMBS = {
    "fork_bomb": ("E_TIMEOUT", LIMITS), "memory": ("E_OOM", WATCH),
    "shared_memory": ("E_OOM", WATCH), "memfd": ("E_ARTIFACT", WATCH),
    "shm": ("E_ARTIFACT", WATCH), "tmp": ("E_ARTIFACT", WATCH), "disk": ("E_ARTIFACT", WATCH),
    "nameless": ("E_ARTIFACT", WATCH), "closed_folder": ("E_ARTIFACT", WATCH),
    "one_file": ("E_ARTIFACT", LIMITS), "inodes": ("E_ARTIFACT", WATCH),
    "first_thread_gone": ("E_OOM", WATCH), "unreadable_program": ("E_ARTIFACT", WATCH),
    "slow_to_look_at": ("E_ARTIFACT", WATCH), "moved_out_of_sight": ("E_ARTIFACT", WATCH),
    "deep_folders": ("E_ARTIFACT", WATCH), "flood": ("E_ARTIFACT", WATCH),
}  # fmt: skip


def done(mesh: DevMesh, body: dict[str, Any], timeout_s: float = 60) -> models.TaskView:
    return mesh.rae.wait(mesh.rae.submit([body])[0].task_id, timeout_s)


@pytest.fixture(scope="module")
def found(mesh: DevMesh, facts: dict[str, Any]) -> dict[str, str]:
    attempts = [[name] for name in LOOKS] + [["syscall_refused", name] for name in NUMBERS]
    view = done(mesh, python("attempts", attempts=attempts, facts=facts))
    assert view.state == "succeeded", view.error
    return dict(view.result)


@pytest.mark.parametrize("attempt", LOOKS)
def test_a_task_sees_and_reaches_nothing_but_its_workspace(
    found: dict[str, str], attempt: str, record_property: Any
) -> None:
    record_property("layer", LOOKS[attempt])
    record_property("said", found[attempt])
    assert not found[attempt].startswith("ESCAPED"), found[attempt]


@pytest.mark.parametrize("call", NUMBERS)
def test_a_system_call_is_refused_before_the_kernel_looks_at_it(
    found: dict[str, str], call: str, record_property: Any
) -> None:
    record_property("layer", FILTER)
    record_property("said", found[f"syscall_refused {call}"])
    assert not found[f"syscall_refused {call}"].startswith("ESCAPED")


def test_outside_a_box_the_same_attempts_succeed(facts: dict[str, Any]) -> None:
    names = ["node_files", "other_processes", "network", "privileges"]
    names += ["source_checkout", "data_folder"]
    free = attempts.run(None, [[name] for name in names], facts)
    assert {name for name in names if free[name].startswith("ESCAPED")} == set(names)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_hurts_only_its_own_task(mesh: DevMesh, bomb: str, record_property: Any) -> None:
    code, layer = BOMBS[bomb]
    view = done(mesh, {**harm(bomb), "timeout_s": 20 if bomb != "fork_bomb" else 3})
    assert view.error is not None
    record_property("layer", layer)
    record_property("said", f"{view.error.code}: {view.error.message.splitlines()[0][:120]}")
    assert (view.state, view.error.code) == ("failed", code), view.error
    # The machine still does other people's work.
    assert done(mesh, {"kind": "cli", "params": {"command": "true"}}).state == "succeeded"


def test_a_daemon_ends_with_its_task(mesh: DevMesh, record_property: Any) -> None:
    record_property("layer", PIDS)
    marker = f"86417.{os.getpid()}"
    view = done(mesh, harm("daemon", marker=marker))
    assert view.state == "succeeded", view.error
    assert running(marker) == []


def test_files_that_one_task_holds_on_the_way_do_not_stop_those_of_another(
    mesh: DevMesh, record_property: Any
) -> None:
    record_property("layer", "supervisor")
    marker = f"86419.{os.getpid()}"
    holder = mesh.rae.submit([harm("files_on_the_way", marker=marker)])[0].task_id
    until(lambda: running(marker), "all that the kernel takes is on the way", 20)
    view = done(mesh, {**harm("leave_behind"), "artifacts": [{"name": "mark"}]})
    assert view.state == "succeeded", view.error
    mesh.rae.cancel(holder)


@pytest.mark.parametrize("name", ["link", "fifo", "folder", "plain", "twin", "folder/plain"])
def test_an_output_that_is_no_plain_file_of_one_name_is_refused(
    mesh: DevMesh, name: str, record_property: Any
) -> None:
    record_property("layer", "reader of outputs")
    body = {**harm("outputs", target="/etc/hostname"), "artifacts": [{"name": name}]}
    view = done(mesh, body)
    assert view.error is not None
    record_property("said", view.error.message)
    assert (view.state, view.error.code) == ("failed", "E_ARTIFACT")


def test_a_sparse_output_counts_as_large_as_it_reads(mesh: DevMesh, record_property: Any) -> None:
    record_property("layer", "reader of outputs")
    body = {**harm("outputs", target="x"), "artifacts": [{"name": "sparse", "max_mb": 1}]}
    view = done(mesh, body)
    assert view.error is not None and (view.state, view.error.code) == ("failed", "E_ARTIFACT")


def test_the_next_task_finds_nothing_of_the_one_before(mesh: DevMesh, record_property: Any) -> None:
    record_property("layer", "one workspace each")
    assert done(mesh, harm("leave_behind")).state == "succeeded"
    view = done(mesh, harm("look_for_marks"))
    assert (view.state, view.result) == ("succeeded", [])
    workdir = mesh.nodes["n1"].root / "workdir"
    until(lambda: len(list(workdir.iterdir())) == 1, "only the bystander's workspace")


def test_a_silent_or_babbling_task_delays_no_other_task(
    mesh: DevMesh, record_property: Any
) -> None:
    record_property("layer", "supervisor")
    view = done(mesh, harm("slow_loris"))
    assert view.state in {"succeeded", "failed"}
    assert done(mesh, {"kind": "cli", "params": {"command": "true"}}).state == "succeeded"
