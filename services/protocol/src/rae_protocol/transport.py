"""One HTTP call with time limits, typed errors and a careful retry."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from requests.auth import AuthBase

from rae_protocol.errors import RemoteError, Unreachable

RETRY_STATUS = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: wait anything between 0 and min(cap, base * 2^try) seconds.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter".
    """

    tries: int = 6
    base_s: float = 0.25
    cap_s: float = 8.0

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Seconds before the try after number `attempt` (0 = the first)."""
        return rng.uniform(0, min(self.cap_s, self.base_s * 2.0 ** min(attempt, 30)))


class BearerAuth(AuthBase):
    """A bearer token; also keeps `requests` from reading ~/.netrc."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class Transport:
    """Calls to one control host. One instance serves several threads.

    `retry=True` is only for calls that may be repeated: it repeats after connection errors and
    429/502/503/504, honouring `Retry-After`.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 30.0,
        backoff: Backoff = Backoff(),
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.url = url.rstrip("/")
        self.clock_offset_s = 0.0
        self._connect = connect_timeout_s
        self._read = read_timeout_s
        self._backoff = backoff
        self._sleep = sleep
        self._now = now
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._idle: list[requests.Session] = []

    def call(
        self,
        method: str,
        path: str,
        *,
        auth: AuthBase,
        params: dict[str, Any] | None = None,
        data: bytes | None = None,
        files: list[tuple[str, tuple[str, Any, str]]] | None = None,
        content_type: str | None = None,
        retry: bool = False,
        wait_s: float = 0.0,
        stream: bool = False,
    ) -> requests.Response:
        """Send and return the 2xx response.

        Raises RemoteError with control's rc, or Unreachable. `wait_s` is added to the read
        timeout of a long poll.
        """
        attempt = 0
        while True:
            failure: RemoteError | Unreachable
            pause = self._backoff.delay(attempt, self._rng)
            try:
                with self._session() as session:
                    response = session.request(
                        method,
                        self.url + path,
                        params=params,
                        data=data,
                        files=files,
                        auth=auth,
                        headers={"Content-Type": content_type} if content_type else None,
                        timeout=(self._connect, self._read + wait_s),
                        stream=stream,
                        allow_redirects=False,
                    )
            except requests.RequestException as error:
                failure = Unreachable(f"{self.url} did not answer ({type(error).__name__})")
                may_repeat = retry
                cause: Exception | None = error
            else:
                self._adopt_clock(response)
                if response.ok:
                    return response
                failure, cause = _remote_error(response), None
                may_repeat = retry and response.status_code in RETRY_STATUS
                after = response.headers.get("Retry-After", "")
                if after.isdigit():
                    pause += min(float(after), 60.0)
            attempt += 1
            if not may_repeat or attempt >= self._backoff.tries:
                raise failure from cause
            self._sleep(pause)

    @contextmanager
    def _session(self) -> Iterator[requests.Session]:
        # Kept between threads: one that lives for a single task would connect anew each time. A
        # streamed answer holds its connection, not the session.
        try:
            session = self._idle.pop()
        except IndexError:
            session = requests.Session()
            session.trust_env = False  # a proxy of the desktop's owner is not ours to use
        try:
            yield session
        finally:
            self._idle.append(session)

    def _adopt_clock(self, response: requests.Response) -> None:
        date = response.headers.get("Date")
        if not date:
            return
        try:
            theirs = parsedate_to_datetime(date).timestamp()
        except ValueError:
            return
        offset = theirs + 0.5 - self._now()
        # The header has whole seconds: a difference below that is noise.
        self.clock_offset_s = 0.0 if abs(offset) < 2.0 else offset


def _remote_error(response: requests.Response) -> RemoteError:
    try:
        body = response.json()
        return RemoteError(body["rc"], body["message"], response.status_code, body["detail"])
    except (ValueError, KeyError, TypeError):
        text = response.text[:200]
        return RemoteError(
            "internal", f"HTTP {response.status_code}: {text}", response.status_code, {}
        )
