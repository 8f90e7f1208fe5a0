"""Redis's file is a convenience: cut, damaged or gone, the queue comes back from the ledger."""

from __future__ import annotations

import signal

from tests.conftest import MakeMesh
from tools.devmesh import wait_until
from tools.processes import is_alive


def test_a_damaged_append_only_file_costs_nothing(make_mesh: MakeMesh) -> None:
    control = make_mesh()
    rae = control.rae
    ids = [
        ref.task_id for ref in rae.submit([{"kind": "cli", "params": {"command": "true"}}] * 120)
    ]

    def garbage_everywhere() -> bool:
        files = list((control.data / "redis").rglob("*.incr.aof"))
        if not files or files[0].stat().st_size < 40_000:
            return False
        assert control.kill("serve", signal.SIGSTOP)  # it would start Redis again at once
        pid = control.pid("redis")
        control.kill("redis")
        wait_until(lambda: not is_alive(pid), 10, "Redis is dead")
        size = files[0].stat().st_size
        with files[0].open("r+b") as handle:
            for place in range(size // 4, size, size // 20):
                handle.seek(place)
                handle.write(b"\0garbage\r\n")
        return control.kill("serve", signal.SIGCONT)

    wait_until(garbage_everywhere, 20, "the queue is in the file")
    log = control.data / "log" / "control.out"
    wait_until(lambda: "it starts empty" in log.read_text(), 20, "Redis starts empty")
    control.add_node("n1")
    for task_id in (ids[0], ids[-1]):
        assert rae.wait(task_id, 60).state.value == "succeeded"
