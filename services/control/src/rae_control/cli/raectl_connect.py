"""Which control `raectl` asks, and with which token."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from rae_control.cli.raectl_submit import UsageError
from rae_protocol.client import RaeClient
from rae_protocol.errors import in_words

# What `serve --dev` has written here, else what the control role has written on this host.
DEFAULT_CREDENTIALS = Path("data/credentials.json")
HOST_CREDENTIALS = Path("/etc/rae-control/credentials.json")


def _default_credentials() -> Path:
    on_control = HOST_CREDENTIALS.exists() and not DEFAULT_CREDENTIALS.exists()
    return HOST_CREDENTIALS if on_control else DEFAULT_CREDENTIALS


def connect(args: argparse.Namespace) -> RaeClient:
    """A client as options, environment and files say. Raises UsageError."""
    file = getattr(args, "credentials", None)
    ca_file = getattr(args, "ca_file", None)
    url, token = os.environ.get("RAE_URL"), os.environ.get("RAE_TOKEN", "").strip() or None
    if url and not url.startswith(("http://", "https://")):
        raise UsageError(f"RAE_URL is '{url}'; write it as http://ADDRESS:PORT or https://NAME")
    if token and not (token.isascii() and token.isprintable()):
        raise UsageError("RAE_TOKEN holds characters that no token has; copy it again")
    if file is None and url:
        if token is None:
            text = "RAE_URL is set and RAE_TOKEN is not"
            raise UsageError(f"{text}; set both, or name a file with --credentials")
        return RaeClient(url, token, ca_file=ca_file)
    path = Path(file or os.environ.get("RAE_CREDENTIALS") or _default_credentials())
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        token = token or found["admin_token"]
        return RaeClient(url or found["url"], token, ca_file=ca_file)
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no {path}; set RAE_URL and RAE_TOKEN, or name a file with --credentials"
        ) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {in_words(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        found_wrong = f"{error} is missing" if isinstance(error, KeyError) else error
        text = f"{path} is no credentials.json ({found_wrong})"
        raise UsageError(f"{text}; use one that `rae-control serve --dev` wrote") from error
