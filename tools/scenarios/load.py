"""The work that a mesh gets while it is disturbed: tasks that stamp, and who submits them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rae_protocol.client import RaeClient
from rae_protocol.errors import RaeError
from tools.devmesh import DevMesh, install_stamp
from tools.scenarios.audit import Record

Body = dict[str, Any]
Job = Callable[[threading.Event], None]


def stamp(stamps: Path, seconds: float, *, fails: int = 0, kib: int = 0, **more: Any) -> Body:
    """A task that writes down when it lives (`tools/stamp.py`)."""
    params = {"stamps": str(stamps), "seconds": round(seconds, 2), "fails": fails, "kib": kib}
    return {
        "kind": "python", "params": {"task": "stamp", "params": params},
        "artifacts": [{"name": "bytes"}] if kib else [], **more,
    }  # fmt: skip


def add_nodes(mesh: DevMesh, names: Sequence[str], folder: Path, **settings: object) -> None:
    """Nodes that run such tasks; the tasks' file lies in the folder."""
    tasks = str(install_stamp(folder))
    for name in names:
        mesh.add_node(name, {"task_paths": [tasks], "max_concurrent_cpu": 2, **settings})
    for name in names:
        mesh.wait_node(name, "online")


def submitter(
    client: RaeClient, record: Record, batch: Callable[[], list[Body]],
    pace: Callable[[list[str], threading.Event], None],
) -> Job:  # fmt: skip
    """Submits batches until the end. `pace` waits between them; it gets the ids so far, and may
    take off those that it is done with."""

    def run(stop: threading.Event) -> None:
        mine: list[str] = []
        while not stop.is_set():
            try:
                bodies = batch()
                client.submit(bodies)
            except RaeError:
                record.count("submits without an answer")
            else:
                ids = [str(body["task_id"]) for body in bodies]
                with record.lock:
                    record.submitted.update(ids)
                mine += ids
            pace(mine, stop)

    return run


@contextmanager
def beside(*jobs: Job) -> Iterator[Callable[[], bool]]:
    """Run these until the block ends, and raise what they raise; gives whether one has ended."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(job, stop) for job in jobs]
        try:
            yield lambda: any(one.done() for one in running)
        finally:
            stop.set()
    for one in running:
        one.result()


def show_progress(text: str) -> None:
    """A line that the next one overwrites, on a terminal alone."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="", flush=True)


def show_counts(counts: Mapping[str, float]) -> None:
    """What was counted, one a line."""
    print(("\r\x1b[K" if sys.stdout.isatty() else "") + "\n".join(
        f"{name:<44}{number:>8}" for name, number in counts.items()))  # fmt: skip
