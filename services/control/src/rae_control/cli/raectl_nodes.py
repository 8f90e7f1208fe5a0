"""`raectl nodes wait` and `raectl self-test`: wait for a node, and prove that it does work."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Protocol, get_args

from rae_protocol.client import RaeClient
from rae_protocol.errors import Unreachable
from rae_protocol.models import NodeView, TaskView

STATES: tuple[str, ...] = get_args(NodeView.model_fields["state"].annotation)
_EVERY_S = 1.0


class Nodes(Protocol):
    """What answers for nodes: a RaeClient."""

    def node(self, node_id: str) -> NodeView:
        """One node, whatever its state. Raises Unreachable."""


class NotMet(Exception):
    """The node did not do what was waited for; the text says what, why and how to fix it."""


def seconds(text: str) -> float:
    """A timeout on the command line. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not above 0; give the seconds to wait")
    return value


def wait_for_state(
    client: Nodes,
    node_id: str,
    state: str,
    timeout_s: float,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> NodeView:
    """The node, once it is in that state.

    Raises NotMet after the timeout; Unreachable if control does not answer by then.
    """
    end = monotonic() + timeout_s
    while True:
        try:
            node = client.node(node_id)
        except Unreachable:
            if monotonic() >= end:
                raise
        else:
            if node.state == state:
                return node
            if monotonic() >= end:
                why = f" ({node.reason})" if node.reason else ""
                raise NotMet(
                    f"{node_id} is {node.state}{why} and not {state} after {timeout_s:g} s."
                    " `rae-node doctor` on the node names what to fix; --timeout waits longer."
                )
        sleep(min(_EVERY_S, max(0.0, end - monotonic())))


def self_test(client: RaeClient, node_id: str, timeout_s: float) -> TaskView:
    """One small task that only this node may take, after it has ended.

    Raises NotMet after the timeout, with the task cancelled.
    """
    client.node(node_id)  # an unknown node is refused at once
    now = datetime.now(timezone.utc)
    name = re.sub(r"[^A-Za-z0-9_-]", "-", node_id)
    task_id = f"self-test-{name}-{now:%Y%m%d%H%M%S}"[:64]
    body = {
        "task_id": task_id,
        "kind": "cli",
        "params": {"command": "sha256sum", "args": ["hello.txt"]},
        "inputs": {"hello.txt": {"inline": f"hello, {node_id}\n"}},
        "requirements": {"nodes": [node_id]},
        "labels": {"purpose": "SELF_TEST"},
        "priority": 9,
        "timeout_s": 60,
        # Should this program be killed, the task does not run later.
        "expires_at": (now + timedelta(seconds=timeout_s + 60)).isoformat(),
    }
    client.submit([body])
    try:
        return client.wait(task_id, timeout_s)
    except TimeoutError as error:
        view = client.task(task_id)
        if view.state.final:
            return view
        client.cancel(task_id, "the self-test timed out")
        why = " ".join(view.why) or f"It is {view.state.value}."
        raise NotMet(
            f"{node_id} did not finish {task_id} within {timeout_s:g} s, and the task is cancelled:"
            f" {why} `rae-node why` on the node names what to fix; --timeout waits longer."
        ) from error
