"""The one kind of HTTP session that is used here."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter

from rae_protocol.abort import AbortableAdapter

# What other programs read, too: a bundle that takes the place of the public CAs.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
NAME_A_CA_FILE = "Name a PEM file that this program may read."


def ca_from(environ: Mapping[str, str], *names: str) -> str | None:
    """The CA bundle that the first of these variables names, then of the standard ones."""
    return next((environ[name] for name in (*names, *CA_VARIABLES) if environ.get(name)), None)


def ca_problem(ca_file: str) -> str:
    """Why certificates cannot be read from a CA bundle (a file or a folder); "": they can."""
    try:
        if not Path(ca_file).is_dir():
            ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        return f"the CA file {ca_file} holds no PEM certificate"
    except OSError as error:
        return f"the CA file {ca_file} cannot be read: {error.strerror}"
    return ""


class PlainSession(requests.Session):
    """Takes each answer as it comes: no redirect, no cookie, no proxy of the desktop's owner.

    Ask with `stream=True, allow_redirects=False`. No content coding is asked for. `ca_file`: whose
    certificates are trusted; None: what the standard variables name, else the public CAs.
    """

    def __init__(
        self,
        adapter: Callable[[], HTTPAdapter] = AbortableAdapter,
        *,
        ca_file: str | None = None,
    ) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = ca_file or ca_from(os.environ) or True
        for scheme in ("http://", "https://"):
            self.mount(scheme, adapter())
        self.headers["Accept-Encoding"] = "identity"
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """None. Even where it does not follow, `requests` reads the whole body of a redirect."""
        return None
