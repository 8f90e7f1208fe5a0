"""Bytes that wait for their reader, on the disk where they are many."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import IO, cast

IN_MEMORY = 64 * 1024


def spooled(folder: Path, *pieces: bytes) -> IO[bytes]:
    """The pieces in one stream: an unnamed file in the folder (/tmp may be memory) if not small.

    For a reader's thread, so that only as many are in memory at once as there are readers. On a
    full disk they stay there: what was done must be recorded.
    """
    made = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=str(folder))  # noqa: SIM115
    try:
        for piece in pieces:
            made.write(piece)
    except OSError:
        made.close()
        stream = io.BytesIO()
        stream.writelines(pieces)
        return stream
    return cast("IO[bytes]", made)
