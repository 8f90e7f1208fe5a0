"""The one kind of HTTP session that is used here."""

from __future__ import annotations

from collections.abc import Callable
from http.cookiejar import DefaultCookiePolicy

import requests
from requests.adapters import HTTPAdapter

from rae_protocol.abort import AbortableAdapter


class PlainSession(requests.Session):
    """Takes each answer as it comes: no redirect, no cookie, no proxy of the desktop's owner.

    Ask with `stream=True, allow_redirects=False`. No content coding is asked for.
    """

    def __init__(self, adapter: Callable[[], HTTPAdapter] = AbortableAdapter) -> None:
        super().__init__()
        self.trust_env = False
        for scheme in ("http://", "https://"):
            self.mount(scheme, adapter())
        self.headers["Accept-Encoding"] = "identity"
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """None. Even where it does not follow, `requests` reads the whole body of a redirect."""
        return None
