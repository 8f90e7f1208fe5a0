"""A copy of a signed request is refused, whatever restarts and clocks do in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rae_control.auth.root_keys import load_roots
from rae_control.config import ControlConfig
from rae_control.mesh.mesh import Mesh
from rae_control.queue.rq_queue import RqQueue
from rae_control.server.app import create_app
from rae_protocol import signing
from tests.integration.control.harness import Api, ManualClock, Server, build, tick

BEAT = json.dumps({"node_id": "n1", "leases": []}).encode()
PATH = "/nodes/heartbeat"


class Restarts:
    """Control over one ledger, which ends and starts again; the clock is the test's."""

    def __init__(self, start: Callable[[], Mesh], clock: ManualClock) -> None:
        self.start, self.clock = start, clock
        self.mesh = start()
        self.api = Api(create_app(self.mesh).test_client(), clock)

    def again(self, *, takes_s: float = 1.0, set_by: float = 0.0, reboots: bool = False) -> None:
        """A restart; no time has passed after it."""
        self.mesh.close()
        self.clock.advance(takes_s)
        self.clock.step(set_by)
        if reboots:
            self.clock.reboot()
        self.mesh = self.start()
        self.api.client = create_app(self.mesh).test_client()

    def signed(self, ahead: float = 0.0) -> signing.SignatureFields:
        key = signing.session_key(self.api.secrets["n1"], self.api.tokens["n1"])
        return signing.signed_fields(key, "n1", "POST", PATH, self.clock.wall() + ahead, BEAT)

    def send(self, fields: signing.SignatureFields | None = None) -> str:
        answer = self.api.node("n1", "POST", PATH, BEAT, fields=fields or self.signed())
        return "taken" if answer.status_code == 200 else str(answer.json["rc"])

    def until_taken(self) -> float:
        """Seconds until a node with the right clock is served again."""
        waited = 0.0
        while (said := self.api.node("n1", "POST", PATH, BEAT, fields=self.signed())).json.get(
            "rc"
        ) == "retry_signed":
            pause = float(said.headers["Retry-After"])
            tick(self.mesh, self.clock, pause)
            waited += pause
        assert said.status_code == 200, said.json
        return waited


@pytest.fixture
def control(
    tmp_path: Path, redis_server: Server, clock: ManualClock, config: ControlConfig
) -> Iterator[Restarts]:
    build(tmp_path, redis_server, clock, config).close()

    def start() -> Mesh:
        roots = load_roots(tmp_path)
        mesh = Mesh(tmp_path, config, clock, RqQueue(redis_server.url, 0.5), roots)
        mesh.reaper.tick()
        return mesh

    control = Restarts(start, clock)
    tick(control.mesh, clock, 2)
    control.api.join("n1")
    tick(control.mesh, clock, 90)
    yield control
    control.mesh.close()


def test_a_ledger_in_which_nothing_happened_makes_no_node_wait(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    clock.offset -= 6  # the second of the start, before which no control was
    api.join("n1")
    assert mesh.nodes.get("n1")


@pytest.mark.parametrize("ahead", [-59, -30, -1, 0, 1, 3, 4, 5])
def test_what_one_control_took_no_later_one_takes(control: Restarts, ahead: int) -> None:
    copy = control.signed(ahead)
    assert control.send(copy) == "taken"
    for _ in range(3):
        control.again(takes_s=0.1)
        assert control.send(copy) in {"retry_signed", "skew"}
    for _ in range(70):
        control.clock.advance(1)
        assert control.send(copy) in {"retry_signed", "skew"}


def test_a_stamp_that_is_more_than_a_little_ahead_is_taken_by_no_control(control: Restarts) -> None:
    assert control.send(control.signed(50)) == "skew"


def test_after_a_restart_an_honest_node_is_served_within_seconds(control: Restarts) -> None:
    control.again()
    assert control.send() == "retry_signed"
    assert control.until_taken() <= 9


def test_a_node_that_is_seconds_behind_is_served_after_one_pause(control: Restarts) -> None:
    control.again()
    late = control.api.node("n1", "POST", PATH, BEAT, fields=control.signed(-2.4))
    assert late.json["rc"] == "retry_signed"
    tick(control.mesh, control.clock, float(late.headers["Retry-After"]))
    assert control.send(control.signed(-2.4)) == "taken"


@pytest.mark.parametrize("set_by", [-500, -90, -2, 0.9, 30])
def test_a_clock_set_across_a_restart_brings_nothing_round_again(
    control: Restarts, set_by: float
) -> None:
    copy = control.signed()
    assert control.send(copy) == "taken"
    control.again(set_by=set_by)
    for _ in range(int(max(0.0, -set_by)) + 70):
        assert control.send(copy) in {"retry_signed", "skew"}
        control.clock.advance(1)
    assert control.until_taken() <= 9


@pytest.mark.parametrize("set_by", [-500, -90, -2, 30])
def test_a_clock_set_while_control_runs_replays_no_call_and_refuses_no_node(
    control: Restarts, set_by: float
) -> None:
    control.again()
    control.clock.advance(600)
    tick(control.mesh, control.clock, 2)
    copy = control.signed()
    assert control.send(copy) == "taken"
    control.clock.step(set_by)
    assert control.send() == "taken"
    for _ in range(int(max(0.0, -set_by)) + 70):
        assert control.send(copy) in {"replayed_nonce", "retry_signed", "skew"}
        tick(control.mesh, control.clock, 1)


@pytest.mark.parametrize("wrong_by", [-40_000_000, -3600, 300, 3600])
def test_a_clock_set_right_after_the_start_lets_no_older_call_in_and_refuses_no_node(
    control: Restarts, wrong_by: float
) -> None:
    copy = control.signed()
    assert control.send(copy) == "taken"
    control.again(set_by=wrong_by, reboots=True)
    tick(control.mesh, control.clock, 8)
    control.clock.step(-wrong_by)
    assert control.send(copy) == "retry_signed"
    assert control.send() == "taken"


def test_no_restart_with_a_clock_set_back_by_hours_keeps_the_nodes_out_for_hours(
    control: Restarts,
) -> None:
    control.again(set_by=-3600)
    assert control.until_taken() <= 9
