"""Nodes that drain."""

from __future__ import annotations

from typing import Any

from tests.integration.control.harness import (
    ECHO,
    Api,
)


def test_every_heartbeat_and_poll_says_whether_to_drain_however_often_that_changed(
    api: Api,
) -> None:
    api.join("n1")

    def beat() -> dict[str, Any]:
        answer = api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1", "leases": []})
        found: dict[str, Any] = answer.json
        return found

    assert (beat()["wanted"], api.poll("n1")["wanted"]) == ("work", "work")
    for verb in ("drain", "resume", "drain"):
        api.rae("POST", f"/nodes/n1/{verb}", {}, who="root")
    first = beat()
    assert [c["command"] for c in first["commands"]] == ["drain"]
    assert first["wanted"] == "drain"
    # That answer was lost, say: the next ones say it again.
    assert (beat()["wanted"], api.poll("n1")["wanted"]) == ("drain", "drain")
    assert api.register("n1").json["wanted"] == "drain"
    api.rae("POST", "/nodes/n1/resume", {}, who="root")
    assert api.poll("n1")["wanted"] == beat()["wanted"] == "work"


def test_drain_lets_work_finish_and_gives_no_more(api: Api) -> None:
    api.join("n1")
    api.submit(ECHO, ECHO)
    ref = api.take("n1")
    assert (
        api.rae("POST", "/nodes/n1/drain", {"reason": "update"}, who="root").json["state"]
        == "draining"
    )
    assert [c["command"] for c in api.poll("n1")["commands"]] == ["drain"]
    assert api.poll("n1")["reasons"][0]["code"] == "draining"
    assert api.result("n1", ref).json["state"] == "succeeded"
    api.rae("POST", "/nodes/n1/resume", who="root")
    assert [c["command"] for c in api.poll("n1")["commands"]] == ["resume"]
    assert api.take("n1")
