"""Callers take turns at the ledger's reader threads."""

from __future__ import annotations

import time
from itertools import pairwise

import apsw
import gevent
import pytest

from rae_control.ledger.readers import MOST_WAITING
from rae_control.mesh.mesh import Mesh
from rae_protocol.errors import RaeError

COUNT = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"


class Slow:
    """Reads that take a while; when each began and ended."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    def __call__(self, db: apsw.Connection) -> None:
        began = time.monotonic()
        assert db.execute(f"{COUNT} SELECT count(*) FROM n").get == 100_000
        self.spans.append((began, time.monotonic()))


def test_one_caller_s_reads_go_one_after_the_other_and_another_s_go_between(mesh: Mesh) -> None:
    slow = Slow()
    anns = [gevent.spawn(mesh.read, slow, "ann") for _ in range(30)]
    gevent.sleep(0)
    assert mesh.read(lambda db: db.execute("SELECT 7").get, "bob") == 7
    assert len(slow.spans) < 3
    gevent.joinall(anns, raise_error=True)
    assert all(end <= begins for (_, end), (begins, _) in pairwise(slow.spans))


def test_what_a_read_raises_reaches_its_caller_and_the_next_one_goes_on(mesh: Mesh) -> None:
    def fail(_db: apsw.Connection) -> None:
        raise RaeError("unknown_task", "there is none")

    failing = gevent.spawn(mesh.read, fail, "ann")
    assert mesh.read(lambda db: db.execute("SELECT 7").get, "ann") == 7
    with pytest.raises(RaeError, match="there is none"):
        failing.get()


def test_only_a_caller_with_too_many_waiting_reads_is_refused(mesh: Mesh) -> None:
    slow = Slow()
    waiting = [gevent.spawn(mesh.read, slow, "ann")]
    gevent.sleep(0)
    small = [gevent.spawn(mesh.read, lambda _db: None, "ann") for _ in range(MOST_WAITING)]
    gevent.sleep(0)
    with pytest.raises(RaeError) as refused:
        mesh.read(lambda _db: None, "ann")
    assert (refused.value.rc, refused.value.retry_after_s) == ("rate_limited", 1)
    mesh.read(lambda _db: None, "bob")
    gevent.joinall([*waiting, *small], raise_error=True)
    mesh.read(lambda _db: None, "ann")
