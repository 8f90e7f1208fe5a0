"""Processes of an earlier agent end before a new one begins."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from rae_node.agent import startup
from rae_node.config.layout import Layout
from rae_node.host import processes
from rae_node.isolation.base import ProcessIsolation
from rae_node.telemetry.log import EventLog


def stray(layout: Layout, how: str) -> subprocess.Popen[bytes]:
    folder = layout.workdir / "t.1"
    folder.mkdir(exist_ok=True)
    (folder / "file").touch()
    if how == "mark":
        env = {"RAE_NODE_ROOT": str(layout.root)}
        return subprocess.Popen(["/bin/sleep", "600"], env=env, start_new_session=True)
    if how == "cwd":
        return subprocess.Popen(["/bin/sleep", "600"], cwd=folder, env={})
    with (folder / "file").open() as handle:
        return subprocess.Popen(["/bin/sleep", "600"], stdin=handle, env={})


def test_every_process_of_an_earlier_agent_is_found_killed_and_wiped_after(
    layout: Layout, quiet_log: EventLog, tmp_path: Path
) -> None:
    strays = [stray(layout, how) for how in ("mark", "cwd", "file")]
    innocent = subprocess.Popen(
        ["/bin/sleep", "600"], env={"RAE_NODE_ROOT": f"{layout.root}-other"}, cwd=tmp_path
    )
    reaper = threading.Thread(target=lambda: [process.wait() for process in strays])
    reaper.start()
    startup.end_predecessors(layout, 10, quiet_log, ProcessIsolation(layout.root))
    reaper.join(5)
    assert [process.returncode for process in strays] == [-9, -9, -9]
    assert innocent.poll() is None
    innocent.kill()
    innocent.wait()
    assert list(layout.workdir.iterdir()) == []


@pytest.mark.parametrize("how", ["mark", "cwd", "file"])
def test_no_process_of_another_user_passes_for_the_agents(layout: Layout, how: str) -> None:
    one = stray(layout, how)
    try:
        assert one.pid in processes.predecessors(layout.root)
        if os.getuid() == 0:
            os.chown(layout.run, 4711, 4711)
        else:
            layout.run.rmdir()
            layout.run.symlink_to("/usr")  # root's
        assert one.pid not in processes.predecessors(layout.root)
        os.chown(layout.workdir, -1, os.getgid())
        layout.workdir.chmod(0o2770)  # shared with the tasks' group, which is this process's now
        assert one.pid in processes.predecessors(layout.root)
    finally:
        one.kill()
        one.wait()
