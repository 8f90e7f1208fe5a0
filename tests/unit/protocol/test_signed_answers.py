"""Who signs its calls takes only control's own answers, from the first signed one on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from rae_protocol import models, signing
from rae_protocol.errors import RemoteError, Unreachable
from rae_protocol.node_client import NodeClient
from rae_protocol.transport import Backoff
from tests.unit.protocol.harness import EMPTY_POLL, LEASE, NOW, REGISTERED, refuse

TOKEN = "session-token"
DAY = 86400
Headers = Callable[[Any, Any], dict[str, str]]


class Clock:
    """The node's wall clock, set by hand."""

    def __init__(self) -> None:
        self.wall = NOW

    def __call__(self) -> float:
        return self.wall


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(server: Any, clock: Clock) -> NodeClient:
    return NodeClient(
        server.url, "n1", "enrolment", now=clock, sleep=lambda _: None,
        backoff=Backoff(tries=1, base_s=0.01, cap_s=0.01),
    )  # fmt: skip


def signing_control(
    now: float = NOW, *, nonce: str | None = None, key: bytes | None = None,
    status: int | None = None, body: bytes | None = None, named: str | None = None,
    content_type: str | None = None,
) -> Headers:  # fmt: skip
    """How control signs; what is given stands in the signature instead of the truth."""

    def adds(request: Any, answer: Any) -> dict[str, str]:
        scheme, _, rest = request.headers["Authorization"].partition(" ")
        registers = scheme == signing.REGISTER_SCHEME
        header = rest if registers else request.headers[signing.SIGNATURE_HEADER]
        own = b"enrolment" if registers else signing.session_key("enrolment", TOKEN)
        digest = named or hashlib.sha256(answer.body if body is None else body).hexdigest()
        came = request.headers.get("Content-Type", "") if content_type is None else content_type
        answered = signing.Answered(
            nonce or signing.parse_signature(header).nonce, came, status or answer.status, digest
        )
        fields = signing.signed_answer(key or own, answered, now)
        return {signing.ANSWER_HEADER: fields.header()}

    return adds


def unsigned(_request: Any, _answer: Any) -> dict[str, str]:
    return {}


def poll(node: NodeClient) -> object:
    return node.poll(wait_s=0, slots=["cpu0"])


FORGED: dict[str, tuple[Callable[[NodeClient], object], int, bytes]] = {
    "superseded": (poll, 401, refuse("superseded")),
    "register_again": (poll, 401, refuse("register_again")),
    "bad_signature": (poll, 401, refuse("bad_signature")),
    "node_revoked": (
        lambda node: node.register(models.RegisterRequest(node_id="n1")), 409,
        refuse("node_revoked"),
    ),
    "another session": (
        lambda node: node.register(models.RegisterRequest(node_id="n1")), 200, REGISTERED,
    ),
    "stale_lease": (
        lambda node: node.result(models.Result(task_id="t1", status="succeeded")), 409,
        refuse("stale_lease"),
    ),
    "a result that control never got": (
        lambda node: node.result(models.Result(task_id="t1", status="succeeded")), 200,
        b'{"task_id": "t1", "state": "succeeded"}',
    ),
    "an ack that control never got": (
        lambda node: node.ack(LEASE), 200, b'{"task_id": "t1", "state": "running"}',
    ),
    "an order": (
        lambda node: node.heartbeat(models.Heartbeat(node_id="n1")), 200,
        b'{"incarnation": "i1", "commands": [{"command": "cancel", "lease_id": "lease-0001"}]}',
    ),
}  # fmt: skip

WRONG: dict[str, Headers] = {
    "none": unsigned,
    "of another call": signing_control(nonce="A" * 22),
    "with another key": signing_control(key=b"guessed"),
    "of another status": signing_control(status=503),
    "of another body": signing_control(body=b"{}"),
    # No request's signature has it: control may have refused what somebody changed.
    "of a call with another type": signing_control(content_type="text/plain"),
    "with another time": lambda request, answer: {
        name: value.replace(f'ts="{NOW:.3f}"', f'ts="{NOW + 9:.3f}"')
        for name, value in signing_control()(request, answer).items()
    },
    "unreadable": lambda _request, _answer: {signing.ANSWER_HEADER: "yes"},
    "in part": lambda _request, _answer: {signing.ANSWER_HEADER: f'ts="{NOW:.0f}"'},
    "without a time": lambda _request, _answer: {signing.ANSWER_HEADER: 'ts="soon", mac="0"'},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("forged", FORGED)
def test_no_one_in_between_speaks_for_a_control_that_signs(
    node: NodeClient, server: Any, answer: Any, forged: str, wrong: str
) -> None:
    node.token = TOKEN
    server.adds = signing_control()
    server.answers[:] = [answer(body=EMPTY_POLL)]
    poll(node)
    call, status, body = FORGED[forged]
    server.adds = WRONG[wrong]
    server.answers[:] = [answer(status, body, {"Date": formatdate(NOW + 900, usegmt=True)})]
    with pytest.raises(Unreachable, match="this is not control's answer"):
        call(node)
    assert (node.token, node.clock_offset_s) == (TOKEN, 0.0)


@pytest.mark.parametrize(
    ("status", "rc", "least"),
    [(429, "rate_limited", 7), (503, "body_too_slow", 7), (401, "retry_signed", 0)],
)
def test_a_refusal_that_control_could_not_sign_is_a_wait_and_nothing_else(
    server: Any, answer: Any, clock: Clock, status: int, rc: str, least: float
) -> None:
    waits: list[float] = []
    node = NodeClient(
        server.url, "n1", "enrolment", now=clock, sleep=waits.append,
        backoff=Backoff(tries=2, base_s=0.01, cap_s=0.01),
    )  # fmt: skip
    node.token = TOKEN
    server.adds = signing_control()
    server.answers[:] = [answer(body=EMPTY_POLL)]
    poll(node)
    server.adds = unsigned
    busy = {"Date": formatdate(NOW + 900, usegmt=True), "Retry-After": "7"}
    server.answers[:] = [answer(status, refuse(rc), busy)]
    with pytest.raises(Unreachable, match="not signed"):
        node.result(models.Result(task_id="t1", status="succeeded"))
    assert [least <= wait < least + 1 for wait in waits] == [True]
    assert (node.token, node.clock_offset_s) == (TOKEN, 0.0)


@pytest.mark.parametrize("wrong", [name for name in WRONG if name != "none"])
def test_a_signature_that_is_wrong_counts_from_the_first_answer_on(
    node: NodeClient, server: Any, answer: Any, wrong: str
) -> None:
    node.token = TOKEN
    server.adds = WRONG[wrong]
    server.answers[:] = [answer(body=EMPTY_POLL)]
    with pytest.raises(Unreachable):
        poll(node)


@pytest.mark.parametrize("rc", ["superseded", "register_again"])
def test_what_control_signed_is_taken(node: NodeClient, server: Any, answer: Any, rc: str) -> None:
    node.token = TOKEN
    server.adds = signing_control()
    server.answers[:] = [answer(body=EMPTY_POLL), answer(401, refuse(rc))]
    poll(node)
    with pytest.raises(RemoteError) as caught:
        poll(node)
    assert caught.value.rc == rc


def test_an_older_control_signs_nothing_and_is_understood(
    node: NodeClient, server: Any, answer: Any
) -> None:
    server.answers[:] = [answer(body=REGISTERED), answer(body=EMPTY_POLL)]
    node.register(models.RegisterRequest(node_id="n1"))
    poll(node)
    server.answers[:] = [answer(401, refuse("superseded"))]
    with pytest.raises(RemoteError):
        poll(node)


def test_a_control_that_is_upgraded_is_held_to_its_signature_from_then_on(
    node: NodeClient, server: Any, answer: Any
) -> None:
    node.token = TOKEN
    server.answers[:] = [answer(body=EMPTY_POLL)]
    poll(node)
    server.adds = signing_control()
    poll(node)
    server.adds = unsigned
    with pytest.raises(Unreachable, match="not signed"):
        poll(node)


@pytest.mark.parametrize(
    "named", [None, "0" * 64], ids=["another hash is named", "the bytes differ"]
)
def test_an_input_that_control_did_not_sign_leaves_no_file(
    node: NodeClient, server: Any, answer: Any, tmp_path: Path, named: str | None
) -> None:
    node.token = TOKEN
    content, false = b"x" * 1000, b"y" * 1000
    digests = [hashlib.sha256(part).hexdigest() for part in (content, false)]
    server.adds = signing_control(named=digests[0])
    server.answers[:] = [answer(body=content, headers={"ETag": f'"{digests[0]}"'})]
    node.fetch_input(LEASE, "a", tmp_path / "right", 1000)
    assert (tmp_path / "right").read_bytes() == content
    tag = {"ETag": f'"{digests[0] if named else digests[1]}"'}
    server.answers[:] = [answer(body=false, headers=tag)]
    with pytest.raises(Unreachable):
        node.fetch_input(LEASE, "a", tmp_path / "wrong", 1000)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("wrong_by", [-20_000 * DAY, -3600, 90, 400 * DAY])
def test_a_clock_that_is_wrong_by_years_is_set_right_by_the_first_signed_refusal(
    node: NodeClient, server: Any, answer: Any, clock: Clock, wrong_by: float
) -> None:
    clock.wall = NOW + wrong_by
    server.adds = signing_control()
    server.answers[:] = [answer(401, refuse("skew")), answer(body=REGISTERED)]
    node.register(models.RegisterRequest(node_id="n1"))
    second = server.requests[1].headers["Authorization"].partition(" ")[2]
    assert abs(int(signing.parse_signature(second).ts) - NOW) <= 1
    assert node.clock_offset_s == pytest.approx(-wrong_by)


@pytest.mark.parametrize("ahead", [-0.4, 0.4, -0.9, 0.9, 1.9])
def test_a_signed_time_is_followed_to_less_than_what_control_takes_ahead(
    node: NodeClient, server: Any, answer: Any, ahead: float
) -> None:
    node.token = TOKEN
    server.adds = signing_control(NOW + ahead)
    server.answers[:] = [answer(body=EMPTY_POLL)]
    poll(node)
    assert abs(ahead - node.clock_offset_s) < 0.5


def test_what_is_not_signed_moves_the_clock_by_a_day_at_most_and_then_not_at_all(
    node: NodeClient, server: Any, answer: Any
) -> None:
    node.token = TOKEN

    def dated(ahead: float) -> float:
        date = {"Date": formatdate(NOW + ahead, usegmt=True)}
        server.answers[:] = [answer(body=EMPTY_POLL, headers=date)]
        poll(node)
        return node.clock_offset_s

    assert dated(4 * 365 * DAY) == 0.0
    assert dated(3600) == pytest.approx(3600, abs=1)  # an older control
    server.adds = signing_control()
    assert dated(7200) == 0.0
    server.adds = unsigned
    with pytest.raises(Unreachable):
        dated(7200)
    assert node.clock_offset_s == 0.0


def test_an_answer_that_is_held_back_moves_no_clock(
    node: NodeClient, server: Any, answer: Any, clock: Clock
) -> None:
    node.token = TOKEN

    def held_back(request: Any, given: Any) -> dict[str, str]:
        clock.wall += 14  # from when control signed to when it arrives
        return signing_control(NOW)(request, given)

    server.adds = held_back
    server.answers[:] = [answer(body=EMPTY_POLL)]
    poll(node)
    assert node.clock_offset_s == 0.0


def test_a_nonce_that_came_twice_says_nothing_of_what_became_of_the_call(
    node: NodeClient, server: Any, answer: Any
) -> None:
    # Something in between sent the call twice: control signs only its answer to the first.
    node.token = TOKEN
    server.adds = signing_control()
    server.answers[:] = [answer(body=EMPTY_POLL)]
    poll(node)
    server.adds = unsigned
    server.answers[:] = [answer(401, refuse("replayed_nonce"))]
    with pytest.raises(Unreachable):
        node.ack(LEASE)


def test_the_parts_of_an_answers_signature_come_back_as_they_went() -> None:
    digest = hashlib.sha256(b"{}").hexdigest()
    answered = signing.Answered("nonce", "application/json", 200, digest)
    made = signing.signed_answer(b"key", answered, NOW + 0.5)
    read = signing.parse_answer(made.header())
    assert read == made
    assert read.ts == f"{NOW:.0f}.500"
    assert signing.answer_matches(read, b"key", answered)


@pytest.mark.parametrize(
    "header", ["", "ts", 'ts="1"', 'ts="1", mac="a", more="b"', 'ts="1", ts="2", mac="a"',
               'ts="-1", mac="a"', 'ts="1e9", mac="a"', 'ts="nan", mac="a"'],
)  # fmt: skip
def test_a_malformed_signature_of_an_answer_is_none(header: str) -> None:
    with pytest.raises(ValueError, match="RAE-Answer"):
        signing.parse_answer(header)
