"""Redis's file is a convenience: cut, damaged or gone, the queue comes back from the ledger."""

from __future__ import annotations

import signal

from tests.harness import MakeMesh
from tests.until import until
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
        until(lambda: not is_alive(pid), "Redis is dead")
        size = files[0].stat().st_size
        with files[0].open("r+b") as handle:
            for place in range(size // 4, size, size // 20):
                handle.seek(place)
                handle.write(b"\0garbage\r\n")
        return control.kill("serve", signal.SIGCONT)

    until(garbage_everywhere, "the queue is in the file", 20)
    log = control.data / "log" / "control.out"
    until(lambda: "it starts empty" in log.read_text(), "Redis starts empty", 20)
    control.add_node("n1")
    for task_id in (ids[0], ids[-1]):
        assert rae.wait(task_id, 60).state.value == "succeeded"
