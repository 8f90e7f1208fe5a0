"""The root key: the one secret that control stores. Everything else is derived from it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from rae_control.errors import ConfigError


def load_roots(folder: Path) -> list[bytes]:
    """The current root key (made at the first start) and, during a rotation, the previous one.

    Raises ConfigError when a key file is not 32 bytes in hex.
    """
    current, previous = folder / "root.key", folder / "root.previous.key"
    if not current.exists():
        handle = os.open(current, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
    return [_read(path) for path in (current, previous) if path.exists()]


def _read(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError as error:
        raise ConfigError(f"{path} does not hold a key in hex; restore it from a backup") from error
    if len(key) != 32:
        raise ConfigError(f"{path} holds {len(key)} bytes instead of 32; restore it from a backup")
    return key
