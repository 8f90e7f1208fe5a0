"""Large answers lie on the disk while callers read them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from flask import Response

from rae_control.storage.files import in_thread

_IN_MEMORY = 64 * 1024


def spooled(folder: Path, *pieces: bytes) -> IO[bytes]:
    """The pieces in one stream: an unnamed file in the folder (/tmp may be memory) if not small.

    For a reader's thread, so that only as many are in memory at once as there are readers. On a
    full disk they stay there: what was done must be told.
    """
    made = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(folder))  # noqa: SIM115
    try:
        for piece in pieces:
            made.write(piece)
    except OSError:
        made.close()
        stream = io.BytesIO()
        stream.writelines(pieces)
        return stream
    return cast("IO[bytes]", made)


def streamed_json(stream: IO[bytes]) -> Response:
    """JSON from a stream, which ends with the answer."""
    size = stream.tell()
    stream.seek(0)
    if size <= _IN_MEMORY:
        with stream:
            return Response(stream.read(), mimetype="application/json")

    def pieces() -> Iterator[bytes]:
        while piece := in_thread(stream.read, _IN_MEMORY):
            yield piece

    head = {"Content-Length": str(size)}
    response = Response(pieces(), headers=head, mimetype="application/json")
    response.call_on_close(stream.close)
    return response
