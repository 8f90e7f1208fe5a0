"""HTTP servers of a test, served by a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer
from typing import TypeVar

S = TypeVar("S", bound=HTTPServer)


@contextmanager
def served(server: S) -> Iterator[S]:
    """Serve until the block ends; its handlers wait for `server.free`, which is set then."""
    server.free = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.free.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()
