"""An evening at a lent desk, as `rae-node why` and `rae-node history` show it to its user."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.vm_image import USER
from tests.until import until
from tests.vm.desk import Desk, sit_down
from tests.vm.guest import PYTHON, MakeGuest


def asked(desk: Desk, *verb: str) -> str:
    """What `rae-node VERB` prints for the user of the desk, who is in no group of ours."""
    command = [PYTHON, "-m", "rae_node", *verb, "--root", "/opt/rae-node"]
    return desk.guest.vm.run(["runuser", "-u", USER, "--", *command]).stdout


def why(desk: Desk) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(asked(desk, "why", "--json"))
    return found


def in_order(text: str, parts: list[str]) -> None:
    at = 0
    for part in parts:
        found = text.find(part, at)
        assert found >= 0, f"{part!r} is missing after:\n{text[:at]}\n---\n{text[at:]}"
        at = found + len(part)


def test_an_evening_is_shown_in_the_order_in_which_it_happened(make_guest: MakeGuest) -> None:
    desk = sit_down(make_guest, "x11")
    until(lambda: desk.status()["reasons"] == ["graphical_session"], "a quiet desk", 60)
    (cause,) = (one for one in why(desk)["causes"] if one["code"] == "graphical_session")
    assert USER in cause["who"] and "sudo rae-node detector test" in cause["who"]
    assert why(desk)["work_in_s"] is None
    print(asked(desk, "why"))
    desk.prove()
    task = desk.work()
    print(asked(desk, "why"))
    assert why(desk)["working"] == [task.task_id]
    desk.lock(locked=True)
    desk.guest.vm.qmp.key("a")
    until(lambda: task.unit not in desk.guest.boxes(), "the task is gone", 20)
    desk.lock(locked=False)
    print(asked(desk, "why"))
    desk.forget(task)
    again = desk.work()
    shown = asked(desk, "history")
    print(shown)
    in_order(shown, [
        "the agent starts", f"of {USER} on seat0", "is open", "no work: ", "was locked",
        "was unlocked", "free: this machine takes work", f"task {task.task_id} (cli) begins",
        "was locked", "no work: input on seat0: 0 s ago", "1 task was stopped within",
        f"task {task.task_id} was given back", "was unlocked",
        "free: this machine takes work", f"task {again.task_id} (cli) begins",
    ])  # fmt: skip
