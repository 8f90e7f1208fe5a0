"""One HTTP call with time limits, typed errors and a careful retry.

An answer counts only when it is control's (`answers.py`): a proxy or captive portal in between
answers too, and nothing may be concluded from that.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any, TypeVar

import requests
from requests.auth import AuthBase

from rae_protocol.answers import Answer, BrokenOff, refusal
from rae_protocol.errors import RemoteError, Unreachable
from rae_protocol.trickle import PatientAdapter

T = TypeVar("T")

_PIECE = 64 * 1024
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


class _InPieces(AuthBase):
    """After another one: a large body is sent piece by piece.

    As one piece it would have to be on its way within the time limit for connecting, for that is
    how urllib3 and `socket.sendall` count: a slow line could never send it.
    """

    def __init__(self, auth: AuthBase) -> None:
        self._auth = auth

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        signed: requests.PreparedRequest = self._auth(request)
        if isinstance(signed.body, bytes) and len(signed.body) > _PIECE:
            signed.body = io.BytesIO(signed.body)  # type: ignore[assignment]
        return signed


class _Session(requests.Session):
    """Takes each answer as it comes: no redirect, no cookie, no proxy of the desktop's owner."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.mount("http://", PatientAdapter())
        self.headers["Accept-Encoding"] = "identity"
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """None. Even where it does not follow, `requests` reads the whole body of a redirect."""
        return None


class Transport:
    """Calls to one control host. One instance serves several threads.

    `retry=True` is only for calls that may be repeated: it repeats when no answer of control came,
    and after 429/502/503/504, honouring `Retry-After`.
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
        self._idle: list[_Session] = []

    def call(
        self,
        method: str,
        path: str,
        *,
        read: Callable[[Answer], T],
        auth: AuthBase,
        params: dict[str, Any] | None = None,
        data: bytes | None = None,
        files: list[tuple[str, tuple[str, Any, str]]] | None = None,
        content_type: str | None = None,
        retry: bool = False,
        wait_s: float = 0.0,
    ) -> T:
        """Send, and return what `read` makes of a 2xx answer.

        `read` raises ValueError for a body that is not the promised one. Raises RemoteError with
        control's rc, Unreachable, and what else `read` raises. `wait_s` is added to the read
        timeout of a long poll.
        """
        attempt = 0
        while True:
            pause = self._backoff.delay(attempt, self._rng)
            try:
                with self._session() as session:
                    response = session.request(
                        method,
                        self.url + path,
                        params=params,
                        data=data,
                        files=files,
                        auth=_InPieces(auth),
                        headers={"Content-Type": content_type} if content_type else None,
                        timeout=(self._connect, self._read + wait_s),
                        stream=True,
                        allow_redirects=False,
                    )
                with response:
                    return self._answered(response, read)
            except requests.RequestException as error:
                failure: RemoteError | Unreachable = Unreachable(
                    f"{self.url} did not answer ({type(error).__name__})"
                )
                failure.__cause__ = error
                may_repeat = retry
            except Unreachable as error:
                failure, may_repeat = error, retry
            except RemoteError as error:
                failure, may_repeat = error, retry and error.status in RETRY_STATUS
                pause += min(error.retry_after_s or 0.0, 60.0)
            attempt += 1
            if not may_repeat or attempt >= self._backoff.tries:
                raise failure
            self._sleep(pause)

    def _answered(self, response: requests.Response, read: Callable[[Answer], T]) -> T:
        """What control answered. Raises RemoteError, Unreachable when it was not control."""
        arrived, answer = self._now(), Answer(response, self._read)
        try:
            if 200 <= answer.status < 300:
                value = read(answer)
                self._adopt_clock(answer, arrived)
                return value
            if answer.status < 400:
                raise ValueError("control answers 2xx, 4xx or 5xx")
            error = refusal(answer)
        except BrokenOff as problem:
            raise Unreachable(f"{self.url} did not answer in full ({problem})") from problem
        except ValueError as problem:
            raise Unreachable(_foreign(self.url, answer, problem)) from problem
        self._adopt_clock(answer, arrived)
        raise error

    @contextmanager
    def _session(self) -> Iterator[_Session]:
        # Kept between threads: one that lives for a single task would connect anew each time. An
        # answer holds its connection, not the session.
        try:
            session = self._idle.pop()
        except IndexError:
            session = _Session()
        try:
            yield session
        finally:
            self._idle.append(session)

    def _adopt_clock(self, answer: Answer, arrived: float) -> None:
        date = answer.headers.get("Date")
        if not date:
            return
        try:
            theirs = parsedate_to_datetime(date).timestamp()
        except ValueError:
            return
        offset = theirs + 0.5 - arrived
        # The header has whole seconds: a difference below that is noise.
        self.clock_offset_s = 0.0 if abs(offset) < 2.0 else offset


def _foreign(url: str, answer: Answer, problem: ValueError) -> str:
    """What came instead of control's answer, for the person who must find out from where."""
    kind = answer.headers.get("Content-Type", "")
    came = f"{answer.status} ({kind})" if kind else f"{answer.status}"
    if answer.status // 100 == 3 and "Location" in answer.headers:
        came = f"{answer.status} to {answer.headers['Location']}"
    shown = "".join(sign if sign.isprintable() else "?" for sign in came[:200])
    return (
        f"{url} answered {shown}: this is not control's answer ({problem}); a proxy or captive "
        "portal may be in between"
    )
