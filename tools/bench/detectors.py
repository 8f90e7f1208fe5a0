"""What the detectors of an owner's presence cost: at rest, and while somebody types all the time.

`python -m tools.bench.detectors guard SOCKET` looks as the guard does at rest, every 10 s, with
the sources of config.yaml; logind and input devices are stand-ins that say nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from rae_node.build import build_sources
from rae_node.config import files
from rae_node.config.files import NodeConfig, RuntimeConfig
from rae_node.config.layout import Layout
from rae_node.config.tuning import Settings
from rae_node.guard.owner_file import OwnerFile
from rae_node.guard.sources.base import Watched
from rae_protocol.clock import SystemClock
from tools.bench.measure import cpu_s, pss_mb, tree
from tools.devmesh import wait_until
from tools.fake_logind import FakeLogind
from tools.recorded_input import packed, plug

_RATE = 1000  # events a second, of which ten go into a report


def detectors(rest_s: float, typing_s: float) -> dict[str, float]:
    """CPU in percent of a core, wake-ups a second, memory in MB; at rest and under input."""
    with tempfile.TemporaryDirectory() as work, FakeLogind(Path(work)) as logind:
        folder, socket = Path(work, "input"), Path(work, "input.sock")
        folder.mkdir()
        keys = plug(folder, 0, "keyboard", name="Keys")
        plug(folder, 1, "pointer", name="Mouse")
        env = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": logind.address}
        input_ = _start("tools.recorded_input", [str(socket), str(folder)], env)
        detector = [psutil.Process(input_.pid)]
        try:
            wait_until(socket.exists, 10, "the input detector listens")
            guard = _start("tools.bench.detectors", ["guard", str(socket), work], env)
            try:
                time.sleep(12)  # what everybody does once is not rest
                both = [*tree(input_.pid), *tree(guard.pid)]
                cpu, wakes = _percent_and_wakes(both, rest_s)
                found = {
                    "rest_cpu_percent": cpu, "rest_wakes_per_s": wakes,
                    "input_pss_mb": pss_mb(detector), "input_rss_mb": _rss_mb(detector),
                }  # fmt: skip
            finally:
                guard.kill()
                guard.wait()
            over = threading.Event()
            typist = threading.Thread(target=_type, args=[keys, over])
            typist.start()
            try:
                cpu, wakes = _percent_and_wakes(detector, typing_s)
            finally:
                over.set()
                typist.join()
            return {**found, "typing_cpu_percent": cpu, "typing_wakes_per_s": wakes}
        finally:
            input_.kill()
            input_.wait()


def _start(module: str, argv: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", module, *argv], env=env)


def _type(keys: Path, over: threading.Event) -> None:
    """Fill the pipe as a kernel fills a device's buffer: what does not fit is lost."""
    report = packed([(1, 30, value % 2) for value in range(9)] + [(0, 0, 0)])
    out = os.open(keys, os.O_RDWR | os.O_NONBLOCK)
    try:
        while not over.wait(10 / _RATE):
            try:
                os.write(out, report)
            except BlockingIOError:
                continue
    finally:
        os.close(out)


def _percent_and_wakes(processes: list[psutil.Process], seconds: float) -> tuple[float, float]:
    before, woken, began = cpu_s(processes), _wakes(processes), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return 100 * (cpu_s(processes) - before) / took, (_wakes(processes) - woken) / took


def _wakes(processes: list[psutil.Process]) -> int:
    """How often threads of these processes went to sleep so far, and so woke up."""
    files = [file for one in processes for file in Path(f"/proc/{one.pid}/task").glob("*/status")]
    lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def _rss_mb(processes: list[psutil.Process]) -> float:
    return sum(process.memory_info().rss for process in processes) / 2**20


def guard(socket: Path, work: Path) -> None:
    """Look as the guard does at rest, until somebody ends it."""
    body = files.dev_config("bench", "http://127.0.0.1:1")
    del body["guard_sources"]
    config = NodeConfig.model_validate({**body, "input_socket": str(socket)})
    runtime = RuntimeConfig.model_validate(files.dev_runtime())
    wake, clock, settings = threading.Event(), SystemClock(), Settings()
    layout = Layout(work / "node")
    layout.create()
    sources = build_sources(
        config,
        lambda: runtime,
        settings,
        clock,
        layout,
        owner=OwnerFile(layout.owner_file),
        wake=wake,
    )
    watched = [Watched(source) for source in sources.values()]
    while True:
        for one in watched:  # as the guard does without a task
            one.look(settings.source_timeout_sec)
        wake.wait(settings.guard_idle_sec)
        wake.clear()


if __name__ == "__main__":
    guard(Path(sys.argv[2]), Path(sys.argv[3]))
