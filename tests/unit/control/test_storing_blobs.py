"""Bytes are stored before the rows that know them; where these never come, they go at once."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from rae_control.storage.files import BlobStore
from rae_protocol.errors import RaeError

DATA = b"some bytes"
NAME = hashlib.sha256(DATA).hexdigest()


def store(blobs: BlobStore, rows: set[str], fails: bool, meanwhile: Callable[[], object]) -> None:
    with blobs.storing([NAME], lambda: [name for name in [NAME] if name not in rows]):
        blobs.add(io.BytesIO(DATA), 100)
        meanwhile()
        if fails:
            raise RaeError("stale_lease")
        rows.add(NAME)


def test_bytes_without_a_row_go_at_once(tmp_path: Path) -> None:
    blobs, rows = BlobStore(tmp_path), set[str]()
    with pytest.raises(RaeError):
        store(blobs, rows, True, lambda: None)
    assert not blobs.path(NAME).exists()
    store(blobs, rows, False, lambda: None)
    assert blobs.path(NAME).exists()


def test_bytes_that_a_row_knows_stay(tmp_path: Path) -> None:
    blobs, rows = BlobStore(tmp_path), set[str]()
    store(blobs, rows, False, lambda: None)
    with pytest.raises(RaeError):
        store(blobs, rows, True, lambda: None)
    assert blobs.path(NAME).exists()


def test_bytes_that_another_one_stores_now_stay(tmp_path: Path) -> None:
    blobs, rows, failed = BlobStore(tmp_path), set[str](), Event()
    other = gevent.spawn(store, blobs, rows, False, failed.wait)
    gevent.sleep(0)
    with pytest.raises(RaeError):
        store(blobs, rows, True, lambda: gevent.sleep(0.05))
    assert blobs.path(NAME).exists()
    failed.set()
    other.get()
    assert rows == {NAME} and blobs.path(NAME).exists()


def test_bytes_that_another_one_stored_before_the_rows_were_looked_at_stay(tmp_path: Path) -> None:
    blobs, rows = BlobStore(tmp_path), set[str]()

    def looks_early() -> list[str]:
        store(blobs, rows, False, lambda: None)  # another one begins and ends after the look
        return [NAME]

    with pytest.raises(RaeError), blobs.storing([NAME], looks_early):
        blobs.add(io.BytesIO(DATA), 100)
        raise RaeError("stale_lease")
    assert blobs.path(NAME).exists()


def test_of_two_that_fail_the_last_one_takes_the_bytes_away(tmp_path: Path) -> None:
    blobs, rows = BlobStore(tmp_path), set[str]()
    both = [
        gevent.spawn(store, blobs, rows, True, lambda s=s: gevent.sleep(s)) for s in (0.02, 0.1)
    ]
    gevent.joinall(both)
    assert all(isinstance(one.exception, RaeError) for one in both)
    assert not blobs.path(NAME).exists()
