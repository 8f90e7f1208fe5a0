"""Control never stays half alive: what ends unexpectedly ends the process, and errors say why."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import gevent
import pytest

from rae_control.auth.root_keys import load_roots
from rae_control.config import ControlConfig
from rae_control.errors import LedgerDamaged, LedgerUnusable
from rae_control.ledger.base import fetch
from rae_control.ledger.sqlite import Ledger, connect
from rae_control.mesh.mesh import Mesh
from rae_control.queue.rq_queue import RqQueue
from rae_control.storage.files import LogStore
from rae_protocol.errors import RaeError
from tests.integration.control.conftest import ManualClock, Server, until


@contextmanager
def limited(what: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(what)
    resource.setrlimit(what, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def test_a_loop_that_ends_ends_the_process_and_a_stop_does_not(
    tmp_path: Path, redis_server: Server, clock: ManualClock, config: ControlConfig
) -> None:
    ends: list[int] = []
    config = config.model_copy(update={"reconcile_interval_s": 0.05})
    queue, roots = RqQueue(redis_server.url, 0.5), load_roots(tmp_path)
    mesh = Mesh(tmp_path, config, clock, queue, roots, end=ends.append)
    until(lambda: mesh.keeper.compared)
    # The keeper's next look at the lanes cannot be answered.
    mesh.write(lambda tx: tx.run("ALTER TABLE tasks RENAME TO gone"))
    clock.advance(60)
    mesh.keeper.slots_changed()
    assert until(lambda: ends) == [70]
    mesh.close()
    gevent.idle()
    assert ends == [70]


def test_reads_go_on_without_a_free_file_descriptor(tmp_path: Path, clock: ManualClock) -> None:
    with closing(Ledger(tmp_path / "ledger.db", clock)) as ledger:
        # The soft limit counts numbers: one below the next free one leaves none.
        spare = os.dup(0)
        os.close(spare)
        with limited(resource.RLIMIT_NOFILE, spare):
            assert ledger.read(lambda db: fetch(db, "SELECT count(*) AS n FROM tasks"))[0]["n"] == 0
            with pytest.raises(LedgerUnusable, match="ulimit"):
                connect(tmp_path / "ledger.db", readonly=True)


def test_a_file_that_is_no_ledger_is_damaged(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "ledger.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(LedgerDamaged, match="restore a backup"):
        Ledger(tmp_path / "ledger.db", clock)


def test_a_log_that_fits_only_in_part_is_not_acknowledged(tmp_path: Path) -> None:
    logs = LogStore(tmp_path, 10**6)
    with limited(resource.RLIMIT_FSIZE, 1000), pytest.raises(RaeError) as caught:
        logs.write("t", 1, 0, b"x" * 3000)
    assert caught.value.rc == "disk_low"
    logs.write("t", 1, 0, b"x" * 3000)
    assert logs.read("t", 1, 0, 10**6) == b"x" * 3000
