"""What is repeated after a failure, how long it waits, and what an error becomes."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import socket
import threading
import time
from email.utils import formatdate
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from rae_protocol import answers
from rae_protocol.errors import TABLE, RemoteError, Unreachable
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


def get(http: Transport, **options: Any) -> bytes:
    """A call that takes any body."""
    return http.call(
        "GET", "/x", read=lambda found: found.body(1000), auth=BearerAuth("token"), **options
    )


def error(rc: str, **more: Any) -> bytes:
    return json.dumps({"rc": rc, "message": "words", "detail": {"n": 1}, **more}).encode()


BUSY = {429: "rate_limited", 503: "not_ready"}


@pytest.mark.parametrize("status", BUSY)
def test_a_busy_answer_is_repeated_where_that_is_harmless(
    server: Any, answer: Any, waits: Waits, status: int
) -> None:
    server.answers[:] = [answer(status, error(BUSY[status])), answer(200, b"ok")]
    assert get(transport(server.url, waits), retry=True) == b"ok"
    assert len(server.requests) == 2
    assert len(waits) == 1


@pytest.mark.parametrize(
    "rc",
    ["invalid_body", "register_again", "wrong_node", "unknown_task", "stale_lease",
     "body_too_large", "unsupported_media", "internal"],
)  # fmt: skip
def test_a_refusal_is_never_repeated(server: Any, answer: Any, waits: Waits, rc: str) -> None:
    status = TABLE[rc][0]
    server.answers[:] = [answer(status, error(rc))]
    with pytest.raises(RemoteError) as caught:
        get(transport(server.url, waits), retry=True)
    assert (caught.value.rc, caught.value.status, caught.value.detail) == (rc, status, {"n": 1})
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", BUSY)
def test_what_must_not_be_repeated_is_sent_once(
    server: Any, answer: Any, waits: Waits, status: int
) -> None:
    server.answers[:] = [answer(status, error(BUSY[status]))]
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
    assert get(transport(server.url, waits), retry=True) == b"{}"
    assert len(server.requests) == 3


def test_a_broken_connection_is_unreachable_where_it_is_not(
    server: Any, answer: Any, waits: Waits
) -> None:
    server.answers[:] = [answer(cut="before")]
    with pytest.raises(Unreachable):
        get(transport(server.url, waits))
    assert len(server.requests) == 1


def test_a_port_without_a_listener_is_unreachable_with_a_hint(waits: Waits) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        http = transport(f"http://127.0.0.1:{free.getsockname()[1]}", waits)
        with pytest.raises(Unreachable, match="Check the URL"):
            get(http, retry=True)
    assert len(waits) == 3


def test_what_must_not_be_done_twice_is_repeated_only_while_nothing_was_done(
    server: Any, answer: Any, waits: Waits
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = transport(f"http://127.0.0.1:{free.getsockname()[1]}", waits)
        with pytest.raises(Unreachable) as refused:
            get(closed, retry="unsent")
    assert (refused.value.unsent, len(waits)) == (True, 3)
    server.answers[:] = [
        answer(503, error("not_ready")), answer(429, error("rate_limited")), answer(cut="before"),
        answer(),
    ]  # fmt: skip
    with pytest.raises(Unreachable) as lost:
        get(transport(server.url, waits), retry="unsent")
    assert (lost.value.unsent, len(server.requests)) == (False, 3)


def test_silence_ends_with_the_read_timeout(waits: Waits) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        http = transport(url, waits, read_timeout_s=0.05)
        before = time.monotonic()
        with pytest.raises(Unreachable, match="did not answer in time"):
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
        answer(429, error("rate_limited"), {"Retry-After": "999999"}),
        answer(429, error("rate_limited"), {"Retry-After": "soon"}),
        answer(429, error("rate_limited"), {"Retry-After": "Fri, 99 Jan 2027 00:00:00 GMT"}),
        answer(),
    ]
    get(transport(server.url, waits), retry=True)
    assert waits[0] <= 60.1
    assert waits[1] <= 0.2
    assert waits[2] <= 0.4


def test_retry_after_may_be_a_date_and_counts_from_the_answers_own(
    server: Any, answer: Any, waits: Waits
) -> None:
    date, later = "Fri, 01 Jan 2027 00:00:00 GMT", "Fri, 01 Jan 2027 00:00:07 GMT"
    past = "Fri, 01 Jan 2027 00:00:00 GMT"
    server.answers[:] = [
        answer(429, error("rate_limited"), {"Date": date, "Retry-After": later}),
        answer(429, error("rate_limited"), {"Date": later, "Retry-After": past}),
        answer(),
    ]
    get(transport(server.url, waits), retry=True)
    assert 7.0 <= waits[0] <= 7.1
    assert waits[1] <= 0.2


@given(st.text(max_size=40))
def test_no_retry_after_breaks_the_call(text: str) -> None:
    response = requests.Response()
    response.status_code, response.raw = 429, io.BytesIO()
    response.headers["Retry-After"] = text
    wait = answers.retry_after_s(answers.Answer(response, 1.0))
    assert wait is None or 0 <= wait < 1e12


def test_a_redirect_is_not_followed_and_says_where_it_would_lead(
    server: Any, answer: Any, waits: Waits
) -> None:
    server.answers[:] = [answer(302, b"", {"Location": f"{server.url}/login\x1b[31m"})]
    with pytest.raises(Unreachable) as caught:
        get(transport(server.url, waits))
    assert [request.target for request in server.requests] == ["/x"]
    said = caught.value.message
    assert f"answered 302 to {server.url}/login?[31m: this is not control's answer" in said
    assert said.endswith("Check the URL and that control runs.")


BODIES = {
    "html": b"<html>", "list": b"[]", "part": b'{"rc": "internal"}', "empty": b"", "bytes": b"\xff",
    "no detail": b'{"rc": "internal", "message": "m"}', "number": error("internal", message=1),
    "null": error("internal", detail=None), "code": error("E 1"), "capitals": error("Internal"),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("retry", [True, False])
def test_an_error_without_controls_body_is_not_controls(
    server: Any, answer: Any, waits: Waits, body: bytes, retry: bool
) -> None:
    server.answers[:] = [answer(500, body)]
    with pytest.raises(Unreachable, match="answered 500"):
        get(transport(server.url, waits), retry=retry)
    assert len(server.requests) == (4 if retry else 1)


@pytest.mark.parametrize(
    ("rc", "status"),
    [("stale_lease", 403), ("stale_lease", 302), ("rate_limited", 503), ("brand_new", 302),
     ("brand_new", 304), ("internal", 502)],
)  # fmt: skip
def test_an_rc_with_a_status_that_is_not_its_own_is_not_controls(
    server: Any, answer: Any, waits: Waits, rc: str, status: int
) -> None:
    server.answers[:] = [answer(status, error(rc))]
    with pytest.raises(Unreachable):
        get(transport(server.url, waits))


@pytest.mark.parametrize(("rc", "status"), [("brand_new", 418), ("invalid_request", 431)])
def test_an_error_of_a_newer_control_or_of_its_web_server_is_taken(
    server: Any, answer: Any, waits: Waits, rc: str, status: int
) -> None:
    server.answers[:] = [answer(status, error(rc, hint="a field of a newer version"))]
    with pytest.raises(RemoteError) as caught:
        get(transport(server.url, waits))
    assert (caught.value.rc, caught.value.status) == (rc, status)


def test_who_is_not_control_sets_neither_the_pause_nor_the_clock(
    server: Any, answer: Any, waits: Waits
) -> None:
    theirs = {"Retry-After": "50", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
    server.answers[:] = [answer(503, b"<html>", theirs), answer(302, b"", theirs), answer()]
    http = transport(server.url, waits)
    get(http, retry=True)
    assert max(waits) <= 1.0
    assert http.clock_offset_s == 0.0


def test_controls_clock_comes_with_its_errors_too(server: Any, answer: Any, waits: Waits) -> None:
    now = 1_767_225_600.0
    date = {"Date": formatdate(now + 120, usegmt=True)}
    server.answers[:] = [answer(401, error("skew"), date)]
    http = transport(server.url, waits, now=lambda: now)
    with pytest.raises(RemoteError):
        get(http)
    assert abs(http.clock_offset_s - 120) <= 0.5


def test_a_compressed_answer_is_not_controls(server: Any, answer: Any, waits: Waits) -> None:
    small = gzip.compress(b"0" * 900)
    server.answers[:] = [answer(200, small, {"Content-Encoding": "gzip"})]
    with pytest.raises(Unreachable, match="compressed"):
        get(transport(server.url, waits))
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [200, 302, 403])
@pytest.mark.parametrize("drips", [False, True])
def test_an_endless_answer_costs_neither_memory_nor_time(
    waits: Waits, status: int, drips: bool
) -> None:
    sent = [0]

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as caller, contextlib.suppress(OSError):
            caller.recv(65536)
            head = f"HTTP/1.1 {status} x\r\nLocation: http://127.0.0.1:9/\r\n\r\n"
            caller.sendall(head.encode())
            while True:
                sent[0] += caller.send(b"0" if drips else b"0" * 65536)
                time.sleep(0.02 if drips else 0)  # the rhythm of who drips

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        http = transport(f"http://127.0.0.1:{listener.getsockname()[1]}", waits, read_timeout_s=0.5)
        before = time.monotonic()
        with pytest.raises(Unreachable):
            http.call("GET", "/x", read=lambda found: found.body(2**20), auth=BearerAuth("token"))
        assert time.monotonic() - before < 5
        thread.join(5)
        assert not thread.is_alive()  # the connection was closed
    assert sent[0] < 64 * 2**20


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"X: a\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"X: a\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;", b"a"),
    ],
    ids=["continue", "header", "headers", "trailers", "chunk extension"],
)
def test_an_answer_that_trickles_around_its_body_ends_in_time(
    waits: Waits, head: bytes, drop: bytes
) -> None:
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as caller, contextlib.suppress(OSError):
            caller.recv(65536)
            caller.sendall(head)
            while not over.wait(0.05):  # the rhythm of who drips
                caller.sendall(drop)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        http = transport(f"http://127.0.0.1:{listener.getsockname()[1]}", waits, read_timeout_s=0.5)
        before = time.monotonic()
        with pytest.raises(Unreachable):
            http.call("GET", "/x", read=lambda found: found.body(2**20), auth=BearerAuth("token"))
        spent = time.monotonic() - before
        over.set()
        thread.join()
    assert spent < 5


def test_a_connection_is_used_again_after_an_answer_that_was_controls(waits: Waits) -> None:
    served: list[int] = []

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as caller:
            while caller.recv(65536):
                served.append(1)
                caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        http = transport(f"http://127.0.0.1:{listener.getsockname()[1]}", waits)
        assert [get(http), get(http), get(http)] == [b"ok"] * 3
    assert len(served) == 3


def test_a_cookie_is_not_kept(server: Any, answer: Any, waits: Waits) -> None:
    server.answers[:] = [answer(403, b"", {"Set-Cookie": "portal=1"}), answer()]
    http = transport(server.url, waits)
    with pytest.raises(Unreachable):
        get(http)
    get(http)
    assert "Cookie" not in server.requests[1].headers


def test_the_token_goes_along_and_netrc_does_not(
    server: Any, waits: Waits, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    get(transport(server.url, waits))
    transport(server.url, waits).call(
        "GET", "/y", read=lambda found: found.body(9), auth=BearerAuth(None)
    )
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


def test_a_large_body_may_take_longer_than_connecting_may(waits: Waits) -> None:
    size, got = 8 << 20, list[int]()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def slow() -> None:
            with listener.accept()[0] as there:
                there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
                head, _, rest = there.recv(65536).partition(b"\r\n\r\n")
                assert b"Content-Length: %d" % size in head
                left, began = size - len(rest), time.monotonic()
                while left and (piece := there.recv(1 << 20)):
                    left -= len(piece)
                    # Twice as long as the limit for all of it.
                    share = (size - left) / size
                    pause.wait(max(0.0, began + 2 * share - time.monotonic()))
                got.append(size - left)
                there.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        pause = threading.Event()
        thread = threading.Thread(target=slow)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        http = transport(url, waits, connect_timeout_s=1.0)
        http.call("PUT", "/blobs/x", read=lambda _: None, auth=BearerAuth("t"), data=bytes(size))
        thread.join()
    assert got == [size]
