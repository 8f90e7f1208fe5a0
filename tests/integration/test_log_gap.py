"""A log is whole in the end, although control lost bytes of it that it had answered for.

Cutting the file short is what a power cut does: the file's name is on the disk, its end is not.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.harness import MakeMesh
from tests.until import until

TALKER = """
import pathlib, time
def run(go: str) -> None:
    print("x" * 600_000, "first", flush=True)
    while not pathlib.Path(go).exists():
        time.sleep(0.02)
    print("second")
"""


def test_a_log_that_control_lost_is_sent_again_before_the_task_ends(
    make_mesh: MakeMesh, tmp_path: Path
) -> None:
    (tmp_path / "talker.py").write_text(TALKER)
    mesh = make_mesh()
    mesh.add_node("n1", {"task_paths": [str(tmp_path)]})
    mesh.wait_node("n1", "online")
    go = tmp_path / "go"
    body = {"kind": "python", "params": {"task": "talker", "params": {"go": str(go)}}}
    task_id = mesh.rae.submit([body])[0].task_id
    log = mesh.data / "logs" / f"{task_id}.1.log"
    until(lambda: log.exists() and log.read_bytes().endswith(b"first\n"), "the log comes", 20)
    os.truncate(log, 1000)
    go.touch()
    assert mesh.rae.wait(task_id, 30).state.value == "succeeded"
    assert log.read_bytes() == b"x" * 600_000 + b" first\nsecond\n"
