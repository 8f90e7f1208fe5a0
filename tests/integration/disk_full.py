"""A really full disk under one part of control: `python -m tests.integration.disk_full PART`.

Runs in a mount namespace of its own (see `test_disk_full.py`), so nothing stays mounted, however
it ends. Prints what happened as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from rae_control.auth.root_keys import load_roots
from rae_control.errors import ControlError
from rae_control.ledger.sqlite import Ledger
from rae_control.maintenance.backup import backup, check_folder, restore
from rae_protocol import models
from rae_protocol.client import RaeClient
from rae_protocol.clock import SystemClock
from rae_protocol.errors import RemoteError
from rae_protocol.node_client import NodeClient
from rae_protocol.transport import Backoff
from tests.until import until
from tools.devmesh import DevMesh

SIZES = {"ledger": "48m", "blobs": "4m", "redis": "4m", "restore": "4m"}


@contextlib.contextmanager
def tmpfs(part: str) -> Iterator[tuple[Path, Path]]:
    """A data folder with a small file system under all of it, or under one of its folders."""
    with tempfile.TemporaryDirectory(prefix="rae-full-") as folder:
        data = Path(folder) / "data"
        place = data if part == "ledger" else data / part
        place.mkdir(parents=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZES[part]}", "none", place], check=True
        )
        try:
            yield data, place
        finally:
            subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> Path:
    """Write until nothing more fits."""
    filler = place / "filler"
    handle = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for size in (2**20, 4096, 64, 1):
        with contextlib.suppress(OSError):
            while True:
                os.write(handle, b"x" * size)
    os.close(handle)
    return filler


def rc_of(call: Any) -> str:
    """How control answered: `ok`, or the rc."""
    try:
        call()
    except RemoteError as error:
        return error.rc
    return "ok"


def scenario(part: str) -> dict[str, Any]:
    with (
        tmpfs(part) as (data, place),
        DevMesh((), data=data, control={"low_water_bytes": 0}) as mesh,
    ):
        rae = RaeClient(mesh.url, mesh.credentials()["admin_token"], backoff=Backoff(tries=1))
        enrolled = mesh.admin.enrol("n")
        node = NodeClient(
            mesh.url, "n", enrolled.enrolment_secret, public_keys=enrolled.control_public_keys,
            backoff=Backoff(tries=1),
        )  # fmt: skip
        node.register(models.RegisterRequest(node_id="n", ack=True, machine="m", instance="i"))
        ids = [rae.submit([{"kind": "cli", "lease_ttl_s": 600}])[0].task_id for _ in range(3)]
        task = until(lambda: node.poll(wait_s=2, slots=["cpu0"]).task, "a task comes")
        ref = models.LeaseRef(task_id=task.task_id, attempt=task.attempt, lease_id=task.lease_id)
        node.ack(ref)
        filler, first = fill(place), ids[0]
        seen: dict[str, set[str]] = {"submit": set(), "upload": set(), "read": set()}
        for number in range(20):
            task_id = f"full-{number}"
            answer = rc_of(lambda t=task_id: rae.submit([{"kind": "cli", "task_id": t}]))
            ids += [task_id] if answer == "ok" else []
            seen["submit"].add(answer)
            seen["upload"].add(rc_of(lambda n=number: rae.upload_blob(b"%d" % n * 99_999)))
            seen["read"].add(rc_of(lambda: rae.task(first)))
        worker, killed = mesh.pid("worker"), False
        alive = requests.get(f"{mesh.url}/healthz", timeout=10).status_code
        if part != "redis":
            # It comes back although nothing can be written, and tells what it knows.
            killed = mesh.kill("worker")
            until(lambda: readable(rae, first), "control reads with a full disk", 60)
        filler.unlink()
        until(lambda: rc_of(lambda: rae.submit([{"kind": "cli"}])) == "ok", "it is over", 60)
        # The node's result was computed all the while; it goes where it belongs.
        until(lambda: delivered(node, ref), "the result is taken", 30)
        until(lambda: node_gets(node), "tasks come again", 30)
        return {
            "seen": {name: sorted(values) for name, values in seen.items()},
            "alive": alive,
            "killed": killed,
            "same_worker": mesh.pid("worker") == worker,
            "lost": [task_id for task_id in ids if rc_of(lambda t=task_id: rae.task(t)) != "ok"],
            "state": rae.task(ref.task_id).state.value,
            "violations": [str(item) for item in check_folder(mesh.data, deep=True)],
        }


def readable(rae: RaeClient, task_id: str) -> bool:
    with contextlib.suppress(Exception):
        return rc_of(lambda: rae.task(task_id)) == "ok"
    return False


def delivered(node: NodeClient, ref: models.LeaseRef) -> bool:
    with contextlib.suppress(RemoteError):
        node.result(models.Result(**ref.model_dump(), status="succeeded"))
        return True
    return False


def node_gets(node: NodeClient) -> bool:
    with contextlib.suppress(RemoteError):
        return node.poll(wait_s=1, slots=["cpu0"]).task is not None
    return False


def incarnation(data: Path) -> str:
    with contextlib.closing(Ledger(data / "ledger.db", SystemClock())) as ledger:
        return ledger.incarnation


def restore_scenario() -> dict[str, Any]:
    """Restores with a little less room each time: all of it, or nothing and a reason."""
    told, kept, told_revocations = set[str](), list[str](), list[str]()
    with tmpfs("restore") as (data, place):
        load_roots(data)
        old = incarnation(data)
        archive = data / "b.tar"
        backup(data, archive)
        for free in range(16, 640, 24):
            target = place / "target"
            filler = fill(place)
            os.truncate(filler, filler.stat().st_size - free * 1024)
            try:
                restore(archive, target, force=False, tell=told_revocations.append)
                done = True
            except (ControlError, OSError) as error:
                told.add(type(error).__name__)
                done = False
            filler.unlink()
            if done:
                kept.append(incarnation(target))
            elif (target / "ledger.db").exists():
                told.add("half a ledger")
            shutil.rmtree(target, ignore_errors=True)
    return {"told": sorted(told), "done": len(kept), "old": old in kept}


if __name__ == "__main__":
    print(json.dumps(restore_scenario() if sys.argv[1] == "restore" else scenario(sys.argv[1])))
