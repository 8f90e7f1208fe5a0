"""A check beside a running control: what it takes long for does not make the ledger's log grow."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from rae_control.maintenance import backup
from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import ECHO, Api, until

MIB = 1024**2


def test_the_log_is_emptied_while_a_deep_check_reads_a_large_blob(api: Api, mesh: Mesh) -> None:
    # A blob of no bytes that ends when the test says so.
    path = mesh.blobs.path(api.blob(b""))
    path.unlink()
    os.mkfifo(path)

    def reader_is_there() -> int | None:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return None

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(backup.check_folder, mesh.data, deep=True)
        writing = until(reader_is_there, "the checking process reads the ledger")
        try:
            for number in range(20):
                spec = {**ECHO, "task_id": f"t{number}", "inputs": {"f": {"inline": "x" * 4 * MIB}}}
                api.submit(spec)
            size = (mesh.data / "ledger.db-wal").stat().st_size
        finally:
            os.close(writing)
        assert found.result() == []
    # The log is emptied when it has 16 MiB.
    assert size < 40 * MIB
