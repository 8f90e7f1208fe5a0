"""Large answers lie on the disk while callers read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from flask import Response

from rae_control.storage.files import in_thread
from rae_control.storage.spooled import IN_MEMORY


def streamed_json(stream: IO[bytes]) -> Response:
    """JSON from a stream, which ends with the answer."""
    size = stream.tell()
    stream.seek(0)
    if size <= IN_MEMORY:
        with stream:
            return Response(stream.read(), mimetype="application/json")

    def pieces() -> Iterator[bytes]:
        while piece := in_thread(stream.read, IN_MEMORY):
            yield piece

    head = {"Content-Length": str(size)}
    response = Response(pieces(), headers=head, mimetype="application/json")
    response.call_on_close(stream.close)
    return response
