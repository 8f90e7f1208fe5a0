"""One HTTP call with time limits, typed errors and a careful retry.

An answer counts only when it is control's (`answers.py`): a proxy or captive portal in between
answers too, and nothing may be concluded from that.
"""

from __future__ import annotations

import io
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Literal, TypeVar

import requests
from requests.auth import AuthBase
from urllib3.exceptions import NewConnectionError

from rae_protocol.answers import Answer, BrokenOff, Unsigned, refusal, retry_after_s
from rae_protocol.connect_errors import diagnose
from rae_protocol.errors import Reason, RemoteError, Unreachable
from rae_protocol.session import NAME_A_CA_FILE, PlainSession, ca_from, ca_problem
from rae_protocol.trickle import PatientAdapter

T = TypeVar("T")

_PIECE = 64 * 1024
RETRY_STATUS = frozenset({429, 502, 503, 504})
NOTHING_DONE_STATUS = frozenset({429, 503})


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


class Caller(AuthBase):
    """Says who calls."""

    def check(self, _response: requests.Response, _body_sha256: Callable[[], str]) -> float | None:
        """Control's clock in unix seconds as the answer's signature has it; None: it has none.

        Raises ValueError when the answer is not control's.
        """
        return None


class BearerAuth(Caller):
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


class Transport:
    """Calls to one control host. One instance serves several threads.

    `retry=True` is only for calls that may be repeated: it repeats when no answer of control came,
    and after 429/502/503/504, honouring `Retry-After`. `retry="unsent"` is for all others: it
    repeats only what control has surely not done, because no connection came about or control
    itself answered 429 or 503. A certificate that is not accepted ends a call at once.

    `ca_file`: whose certificates are trusted; None: what RAE_CA_FILE or a standard variable names,
    else the public CAs.
    """

    def __init__(
        self,
        url: str,
        *,
        ca_file: str | None = None,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 30.0,
        backoff: Backoff = Backoff(),
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
        unsigned_offset_max_s: float = math.inf,
    ) -> None:
        self.url = url.rstrip("/")
        self.clock_offset_s = 0.0
        self._ca_file = ca_file or ca_from(os.environ, "RAE_CA_FILE")
        self._connect = connect_timeout_s
        self._read = read_timeout_s
        self._backoff = backoff
        self._sleep = sleep
        self._now = now
        self._unsigned_max = unsigned_offset_max_s
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._idle: list[PlainSession] = []

    def call(
        self,
        method: str,
        path: str,
        *,
        read: Callable[[Answer], T],
        auth: Caller,
        params: dict[str, Any] | None = None,
        data: bytes | None = None,
        files: list[tuple[str, tuple[str, Any, str]]] | None = None,
        content_type: str | None = None,
        retry: bool | Literal["unsent"] = False,
        wait_s: float = 0.0,
    ) -> T:
        """Send, and return what `read` makes of a 2xx answer.

        `read` raises ValueError for a body that is not the promised one. Raises RemoteError with
        control's rc, Unreachable, and what else `read` raises. `wait_s` is added to the read
        timeout of a long poll.
        """
        if self._ca_file is not None and self.url.startswith("https:"):
            problem = ca_problem(self._ca_file)
            if problem:
                raise Unreachable(problem, unsent=True, reason="ca_file", way_out=NAME_A_CA_FILE)
        attempt = 0
        while True:
            pause = self._backoff.delay(attempt, self._rng)
            sent = self._now()
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
                    return self._answered(response, auth, read, sent)
            except requests.RequestException as error:
                lost = self._unanswered(error)
                failure: RemoteError | Unreachable = lost
                may_repeat = lost.reason != "certificate" and (
                    retry is True or (retry == "unsent" and lost.unsent)
                )
            except Unreachable as error:
                failure, may_repeat = error, retry is True
            except RemoteError as error:
                busy = RETRY_STATUS if retry is True else NOTHING_DONE_STATUS
                failure, may_repeat = error, bool(retry) and error.status in busy
            pause += min(failure.retry_after_s or 0.0, 60.0)
            attempt += 1
            if not may_repeat or attempt >= self._backoff.tries:
                raise failure
            self._sleep(pause)

    def _unanswered(self, error: requests.RequestException) -> Unreachable:
        found = diagnose(error)
        text = f"{self.url} {found.what}"
        if found.reason == "certificate" and self._ca_file is not None:
            text += f"; trusted here is {self._ca_file}"
        failure = Unreachable(
            text, unsent=_is_unsent(error, found.reason), reason=found.reason,
            way_out=found.way_out,
        )  # fmt: skip
        failure.__cause__ = error
        return failure

    def _answered(
        self, response: requests.Response, auth: Caller, read: Callable[[Answer], T], sent: float
    ) -> T:
        """What control answered. Raises RemoteError, Unreachable when it was not control."""
        arrived, answer = self._now(), Answer(response, self._read, partial(auth.check, response))
        try:
            if 200 <= answer.status < 300:
                value = read(answer)
                self._adopt_clock(answer, sent, arrived)
                return value
            if answer.status < 400:
                raise ValueError("control answers 2xx, 4xx or 5xx")
            error = refusal(answer)
        except BrokenOff as problem:
            raise Unreachable(f"{self.url} did not answer in full ({problem})") from problem
        except Unsigned as problem:
            # Control, which could not check who called, or something in between: all that counts
            # of it is a wait.
            wait = retry_after_s(answer) if answer.status in NOTHING_DONE_STATUS else None
            raise Unreachable(
                _foreign(self.url, answer, problem), reason="foreign", retry_after_s=wait
            ) from problem
        except ValueError as problem:
            raise Unreachable(_foreign(self.url, answer, problem), reason="foreign") from problem
        self._adopt_clock(answer, sent, arrived)
        raise error

    @contextmanager
    def _session(self) -> Iterator[PlainSession]:
        # Kept between threads: one that lives for a single task would connect anew each time. An
        # answer holds its connection, not the session.
        try:
            session = self._idle.pop()
        except IndexError:
            session = PlainSession(PatientAdapter, ca_file=self._ca_file)
        try:
            yield session
        finally:
            self._idle.append(session)

    def _adopt_clock(self, answer: Answer, sent: float, arrived: float) -> None:
        theirs, exact, noise = answer.signed_at, 0.0, 0.5
        if theirs is None:
            theirs, exact, noise = _date(answer), 1.0, 2.0  # the header has whole seconds
            if theirs is None or abs(theirs - arrived) > self._unsigned_max:
                return
        # Control wrote it between the two. Who delays an answer moves nothing that fits in there.
        earliest, latest = theirs - arrived, theirs + exact - sent
        if earliest - noise < self.clock_offset_s < latest + noise:
            return
        offset = theirs + exact / 2 - arrived
        self.clock_offset_s = 0.0 if abs(offset) < noise else offset


def _date(answer: Answer) -> float | None:
    """The answer's Date in unix seconds."""
    try:
        return parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    except ValueError:
        return None


def _is_unsent(error: requests.RequestException, reason: Reason) -> bool:
    """Whether there was no connection that could have carried the request."""
    inner = getattr(error.args[0], "reason", None) if error.args else None
    return (
        isinstance(error, requests.ConnectTimeout)
        or isinstance(inner, NewConnectionError)
        or reason in {"certificate", "tls"}
    )


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
