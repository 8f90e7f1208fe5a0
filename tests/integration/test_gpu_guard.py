"""A real agent with a stand-in for NVML: whoever else wants the GPU gets it at once (B2, B3)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rae_node.host import processes
from tests.fake_nvml import GPU, LOST, FakeNvml
from tests.until import until
from tools.devmesh import DevMesh

BODY = {
    "kind": "cli", "params": {"command": "sleep", "args": ["600"]},
    "requirements": {"gpu": True}, "timeout_s": 600,
}  # fmt: skip

TROUBLE = {
    "a foreign process": ([GPU, "proc 0 1 100 0"], "foreign_gpu_process", "yield_owner"),
    "a stream to somebody": ([GPU, "encoder 0 1 1920 1080"], "gpu_stream", "yield_owner"),
    "load": (["gpu GPU-0 16384 300 91"], "gpu_percent_high", "yield_owner"),
    "memory": (["gpu GPU-0 16384 14337 0"], "vram_gb_high", "yield_owner"),
    "an error": ([GPU, "error nvmlDeviceGetMemoryInfo 999"], "blind_gpu", "yield_guard"),
    "a lost GPU": (
        [GPU, f"error nvmlDeviceGetUtilizationRates {LOST}"],
        "blind_gpu",
        "yield_guard",
    ),
    "a hang": ([GPU, "hang nvmlDeviceGetUtilizationRates"], "blind_gpu", "yield_guard"),
}


@pytest.fixture(scope="module")
def nvml(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return FakeNvml(nvml_library, tmp_path_factory.mktemp("control") / "nvml.txt")


@pytest.fixture(scope="module")
def node(nvml: FakeNvml) -> Iterator[DevMesh]:
    """One node with one GPU, which the guard looks at five times as often as it would.

    With more patience: a machine that is busy with tests must not look like a hung driver.
    """
    settings = {"guard_busy_sec": 0.2, "guard_idle_sec": 0.5, "source_timeout_sec": 2.5}
    with DevMesh(("n1",), node=settings, env=lambda _who: nvml.env) as mesh:
        yield mesh


@pytest.fixture
def mesh(node: DevMesh, nvml: FakeNvml) -> Iterator[DevMesh]:
    """That node with a free GPU; what the test submitted is cancelled afterwards."""
    yield node
    nvml.show(GPU)
    for view in node.rae.tasks().tasks:
        if view.state.value not in {"succeeded", "failed", "cancelled", "expired"}:
            node.rae.cancel(view.task_id)
    until(lambda: not node.admin.node("n1").reasons, "the node is open again", 30)


@pytest.fixture
def compositor(tmp_path: Path) -> Iterator[int]:
    """The pid of a process by a compositor's name."""
    program = tmp_path / "kwin_wayland"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "600"]) as process:
        yield process.pid
        process.kill()


def submit(mesh: DevMesh) -> str:
    return mesh.rae.submit([BODY])[0].task_id


def running(mesh: DevMesh, task_id: str) -> int:
    """Wait until the task's own process lives; returns its pid."""

    def found() -> int | None:
        below = processes.descendants(mesh.nodes["n1"].pid)
        sleeps = [pid for pid in below if b"sleep\x00600" in processes.read_proc(f"{pid}/cmdline")]
        return sleeps[0] if sleeps else None

    pid: int = until(found, f"{task_id} runs", 30)
    return pid


def reasons(mesh: DevMesh) -> list[str]:
    return list(mesh.admin.node("n1").reasons)


def history(mesh: DevMesh, task_id: str) -> list[Any]:
    return mesh.rae.events(task_id=task_id).events


@pytest.mark.parametrize("trouble", TROUBLE)
def test_gpu_trouble_ends_the_running_task_and_lets_no_other_begin(
    mesh: DevMesh, nvml: FakeNvml, trouble: str
) -> None:
    """Contract: B3."""
    lines, code, reason = TROUBLE[trouble]
    task_id = submit(mesh)
    pid = running(mesh, task_id)
    nvml.show(*lines)
    given_back = until(
        lambda: [event for event in history(mesh, task_id) if event.reason == reason],
        "the task is given back",
        30,
    )[0]
    assert given_back.detail["stopped_ms"] > 0
    assert not processes.is_alive(pid)
    until(lambda: code in reasons(mesh), "control knows why")
    later = submit(mesh)
    seen = mesh.admin.node("n1").last_seen
    until(lambda: mesh.admin.node("n1").last_seen != seen, "another heartbeat")
    leases = [
        event.seq
        for event in (*history(mesh, task_id), *history(mesh, later))
        if event.to_state == "leased"
    ]
    assert max(leases) < given_back.seq
    nvml.show(GPU)
    running(mesh, "one of the two, when the GPU is free again,")


def test_our_own_task_may_use_the_whole_gpu_beside_a_compositor_at_rest(
    mesh: DevMesh, nvml: FakeNvml, compositor: int
) -> None:
    """Contract: B1."""
    task_id = submit(mesh)
    pid = running(mesh, task_id)
    nvml.show(
        "gpu GPU-0 16384 16000 100 90 90",
        f"proc 0 {pid} 15400 95 90 90",
        f"encoder 0 {pid} 3840 2160",
        f"graphics 0 {compositor} 300 4",
    )
    looks = nvml.calls().count("nvmlDeviceGetUtilizationRates")
    until(
        lambda: nvml.calls().count("nvmlDeviceGetUtilizationRates") >= looks + 5,
        "the guard has looked again and again",
        20,
    )
    assert processes.is_alive(pid) and mesh.rae.task(task_id).state.value == "running"
    # The same use is foreign as soon as it is somebody else's.
    nvml.show("gpu GPU-0 16384 16000 100", "proc 0 1 15700 100")
    until(lambda: not processes.is_alive(pid), "the task is stopped", 20)


def test_a_dev_node_names_its_sources_and_has_the_scripts(mesh: DevMesh) -> None:
    """Contract: B7."""
    assert "load, gpu" in mesh.nodes["n1"].owner("status")
    assert (mesh.nodes["n1"].root / "agent" / "auto_runner.py").is_file()
    assert "ALLOWS work" in mesh.nodes["n1"].owner("dry-run")
    assert Path(mesh.nodes["n1"].root / "logs" / "decisions.jsonl").is_file()
