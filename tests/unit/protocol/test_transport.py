"""What is repeated after a failure, how long it waits, and what an error becomes."""

from __future__ import annotations

import json
import random
import socket
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_protocol.errors import RemoteError, Unreachable
from rae_protocol.transport import Backoff, BearerAuth, Transport


class Waits(list[float]):
    """Stands where `time.sleep` stands and only remembers."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def waits() -> Waits:
    return Waits()


def transport(url: str, waits: Waits, **options: Any) -> Transport:
    return Transport(url, backoff=Backoff(tries=4, base_s=0.1, cap_s=1.0), sleep=waits, **options)


def get(http: Transport, **options: Any) -> Any:
    return http.call("GET", "/x", auth=BearerAuth("token"), **options)


def error(rc: str) -> bytes:
    return json.dumps({"rc": rc, "message": "words", "detail": {"n": 1}}).encode()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_answer_is_repeated_where_that_is_harmless(
    server: Any, answer: Any, waits: Waits, status: int
) -> None:
    server.answers[:] = [answer(status, error("rate_limited")), answer(status), answer(200, b"ok")]
    assert get(transport(server.url, waits), retry=True).content == b"ok"
    assert len(server.requests) == 3
    assert len(waits) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 500])
def test_a_refusal_is_never_repeated(server: Any, answer: Any, waits: Waits, status: int) -> None:
    server.answers[:] = [answer(status, error("stale_lease"))]
    with pytest.raises(RemoteError) as caught:
        get(transport(server.url, waits), retry=True)
    assert (caught.value.rc, caught.value.status, caught.value.detail) == (
        "stale_lease", status, {"n": 1},
    )  # fmt: skip
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_what_must_not_be_repeated_is_sent_once(
    server: Any, answer: Any, waits: Waits, status: int
) -> None:
    server.answers[:] = [answer(status, error("not_ready"))]
    with pytest.raises(RemoteError):
        get(transport(server.url, waits))
    assert len(server.requests) == 1
    assert waits == []


def test_it_gives_up_after_its_tries(server: Any, answer: Any, waits: Waits) -> None:
    server.answers[:] = [answer(503, error("not_ready"))]
    with pytest.raises(RemoteError, match="words"):
        get(transport(server.url, waits), retry=True)
    assert len(server.requests) == 4
    assert len(waits) == 3


def test_a_broken_connection_is_repeated_where_that_is_harmless(
    server: Any, answer: Any, waits: Waits
) -> None:
    server.answers[:] = [answer(cut="before"), answer(body=b"whole answer", cut="after"), answer()]
    assert get(transport(server.url, waits), retry=True).content == b"{}"
    assert len(server.requests) == 3


def test_a_broken_connection_is_unreachable_where_it_is_not(
    server: Any, answer: Any, waits: Waits
) -> None:
    server.answers[:] = [answer(cut="before")]
    with pytest.raises(Unreachable):
        get(transport(server.url, waits))
    assert len(server.requests) == 1


def test_nobody_there_is_unreachable_with_a_hint(waits: Waits) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        http = transport(f"http://127.0.0.1:{free.getsockname()[1]}", waits)
        with pytest.raises(Unreachable, match="Check the URL"):
            get(http, retry=True)
    assert len(waits) == 3


def test_silence_ends_with_the_read_timeout(waits: Waits) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        http = transport(url, waits, read_timeout_s=0.05)
        before = time.monotonic()
        with pytest.raises(Unreachable, match="ReadTimeout"):
            get(http)
        assert time.monotonic() - before < 5


def test_retry_after_is_added_to_the_pause(server: Any, answer: Any, waits: Waits) -> None:
    server.answers[:] = [answer(429, error("rate_limited"), {"Retry-After": "7"}), answer()]
    get(transport(server.url, waits), retry=True)
    assert 7.0 <= waits[0] <= 7.1


def test_an_absurd_retry_after_is_capped_and_nonsense_ignored(
    server: Any, answer: Any, waits: Waits
) -> None:
    server.answers[:] = [
        answer(429, error("x"), {"Retry-After": "999999"}),
        answer(429, error("x"), {"Retry-After": "Fri, 01 Jan 2027 00:00:00 GMT"}),
        answer(),
    ]
    get(transport(server.url, waits), retry=True)
    assert waits[0] <= 60.1
    assert waits[1] <= 0.2


def test_redirects_are_not_followed(server: Any, answer: Any, waits: Waits) -> None:
    server.answers[:] = [answer(302, b"", {"Location": "http://127.0.0.1:9/"})]
    assert get(transport(server.url, waits)).status_code == 302
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"rc": "x"}', b"", b"\xff"])
def test_an_error_without_our_body_is_internal_with_its_status(
    server: Any, answer: Any, waits: Waits, body: bytes
) -> None:
    server.answers[:] = [answer(500, body)]
    with pytest.raises(RemoteError) as caught:
        get(transport(server.url, waits))
    assert (caught.value.rc, caught.value.status) == ("internal", 500)
    assert "HTTP 500" in caught.value.message


def test_the_token_goes_along_and_netrc_does_not(
    server: Any, waits: Waits, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    get(transport(server.url, waits))
    transport(server.url, waits).call("GET", "/y", auth=BearerAuth(None))
    assert server.requests[0].headers["Authorization"] == "Bearer token"
    assert "Authorization" not in server.requests[1].headers


def test_a_proxy_of_the_desktop_is_not_used(
    server: Any, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    get(transport(server.url, waits))
    assert len(server.requests) == 1


@pytest.mark.parametrize(("ahead", "adopted"), [(0, 0), (1, 0), (120, 120), (-120, -120)])
def test_controls_clock_is_adopted_beyond_the_headers_precision(
    server: Any, answer: Any, waits: Waits, ahead: int, adopted: int
) -> None:
    now = 1_767_225_600.0
    server.answers[:] = [answer(headers={"Date": formatdate(now + ahead, usegmt=True)})]
    http = transport(server.url, waits, now=lambda: now)
    get(http)
    assert abs(http.clock_offset_s - adopted) <= 0.5


@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 99 Zzz 2026 99:00:00 GMT"])
def test_a_date_that_cannot_be_read_changes_nothing(
    server: Any, answer: Any, waits: Waits, date: str
) -> None:
    server.answers[:] = [answer(headers={"Date": date})]
    http = transport(server.url, waits)
    get(http)
    assert http.clock_offset_s == 0.0


@given(st.integers(0, 10_000), st.integers())
def test_a_pause_lies_between_zero_and_the_cap(attempt: int, seed: int) -> None:
    backoff = Backoff(tries=9, base_s=0.25, cap_s=8.0)
    pause = backoff.delay(attempt, random.Random(seed))
    assert 0.0 <= pause <= min(8.0, 0.25 * 2.0 ** min(attempt, 30))
