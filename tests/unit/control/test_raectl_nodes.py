"""How long `raectl nodes wait` waits, and for what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rae_control.cli.raectl_nodes import STATES, NotMet, wait_for_state
from rae_protocol.errors import RemoteError, Unreachable
from rae_protocol.models import NodeView
from tests.messages import faults


def seen(state: str, **more: str) -> NodeView:
    return NodeView.model_validate(
        {"node_id": "n1", "state": state, "kind": "hmac", "trusted": False, **more}
    )


class Answers:
    """What control answers, call by call; time passes only while one sleeps."""

    def __init__(self, *answers: NodeView | Exception) -> None:
        self._answers: Iterator[NodeView | Exception] = iter(answers)
        self.now = 0.0

    def node(self, node_id: str) -> NodeView:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait(self, state: str, timeout_s: float) -> NodeView:
        return wait_for_state(self, "n1", state, timeout_s, lambda: self.now, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_states_are_those_that_control_tells() -> None:
    assert set(STATES) == {"online", "offline", "draining", "cordoned", "revoked", "enrolled"}


def test_it_ends_with_the_first_answer_that_has_the_state() -> None:
    control = Answers(seen("enrolled"), seen("offline"), seen("online"))
    assert control.wait("online", 60).state == "online"
    assert control.now == 2


def test_a_control_that_restarts_is_asked_again() -> None:
    control = Answers(Unreachable("refused"), seen("online"))
    assert control.wait("online", 60).state == "online"


def test_a_control_that_stays_away_is_reported_after_the_timeout() -> None:
    control = Answers(*[Unreachable("refused")] * 3)
    with pytest.raises(Unreachable):
        control.wait("online", 1.5)
    assert control.now == 1.5


def test_an_unknown_node_is_refused_at_once() -> None:
    control = Answers(RemoteError("unknown_node", "No such node.", 404, {}))
    with pytest.raises(RemoteError):
        control.wait("online", 60)
    assert control.now == 0


def test_the_timeout_names_the_state_and_its_reason() -> None:
    control = Answers(*[seen("cordoned", reason="three failures")] * 3)
    with pytest.raises(NotMet) as refused:
        control.wait("online", 1.5)
    said = str(refused.value)
    assert said.startswith("n1 is cordoned (three failures) and not online after 1.5 s.")
    assert faults(said) == []
