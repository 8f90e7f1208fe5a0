"""The root key, which all other secrets are derived from. The vault has it, or `--dev` makes it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from rae_control.errors import ConfigError
from rae_protocol.errors import in_words


def load_roots(folder: Path, *, make: bool = True) -> list[bytes]:
    """The current root key (made when there is none) and, during a rotation, the previous one.

    Raises ConfigError when a key is not 32 bytes in hex, or not there and not to be made.
    """
    current, previous = folder / "root.key", folder / "root.previous.key"
    if not current.exists() and not make:
        raise ConfigError(
            f"there is no {current}, and a new root key would shut out every node; put the one from"
            " the vault there (64 hex digits; `openssl rand -hex 32` makes a mesh's first one)"
        )
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
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {in_words(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{path} does not hold a key in hex; restore it from a backup") from error
    if len(key) != 32:
        raise ConfigError(f"{path} holds {len(key)} bytes instead of 32; restore it from a backup")
    return key
