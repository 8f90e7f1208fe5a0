"""The secrets that a service manager hands over as files: never arguments, never environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rae_control.errors import ConfigError, ControlError
from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger.sqlite import Ledger
from rae_protocol.clock import SystemClock
from rae_protocol.errors import first_problem, in_words
from rae_protocol.names import TokenName

PASSWORD, TOKENS = "redis-password", "tokens.json"


class Token(BaseModel):
    """A token that somebody else made, and what it may do."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    role: Literal["submit", "read", "admin"]
    token: str = Field(pattern=r"^[!-~]{20,500}$")


def folder() -> Path:
    """Where the service manager put them. Raises ConfigError."""
    named = os.environ.get("CREDENTIALS_DIRECTORY")
    if not named:
        raise ConfigError(
            "CREDENTIALS_DIRECTORY is not set, so there is no root key; start it by its unit"
            " (LoadCredential=), or say --dev for a mesh without any installation"
        )
    return Path(named)


def redis_password(credentials: Path | None) -> str | None:
    """The password of control's user in Redis, if it has one; an empty file says no."""
    path = (credentials or Path()) / PASSWORD
    if credentials is None or not path.exists():
        return None
    return _read(path).strip() or None


def tokens(credentials: Path) -> dict[str, Token]:
    """The tokens that shall hold, by name. Raises ConfigError, never with a token in it."""
    path = credentials / TOKENS
    if not path.exists():
        return {}
    try:
        found = TypeAdapter(dict[TokenName, Token]).validate_python(json.loads(_read(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error, 'tokens')}") from None
    except ValueError:
        raise ConfigError(f"{path} is no JSON; fix it in the vault") from None
    if len({item.token for item in found.values()}) < len(found):
        raise ConfigError(f"{path} has one token under two names; make another one")
    return found


def keep_tokens(data: Path, wanted: Mapping[str, Token]) -> None:
    """See that exactly these hold under their names; other names stay. Raises ControlError."""
    ledger = Ledger(data / "ledger.db", SystemClock())
    try:
        steps = [
            partial(ledger_nodes.keep_token, name=name, role=item.role, text=item.token)
            for name, item in wanted.items()
        ]
        for outcome in ledger.transact(steps)[0]:
            if outcome.error is not None:
                raise ControlError(f"the tokens could not be kept: {outcome.error}")
    finally:
        ledger.close()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = in_words(error) if isinstance(error, OSError) else "no UTF-8; fix it in the vault"
        raise ConfigError(f"{path} cannot be read: {why}") from error
