"""A token's name is a submitter's, a lane's and a queue's: what could be none comes in nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rae_control.auth import credentials
from rae_control.config import ControlConfig
from rae_control.errors import ConfigError, ControlError
from rae_control.ledger.base import Tx
from rae_control.ledger.nodes import add_token, keep_token, sha256
from rae_control.maintenance.backup import check_folder
from rae_control.mesh.mesh import Mesh
from rae_control.server.app import create_app
from rae_protocol.errors import RaeError
from tests.integration.control.conftest import ECHO, Api, ManualClock, Server, build, until

ODD = ["a.b", "", ".", "p5.alice.0123456789", "x y", "ü", "a/b", "a:b", "-a", "a\n", "a" * 33]
TOKEN = "token-of-somebody-else"


@pytest.mark.parametrize("name", ODD)
def test_no_way_in_takes_an_odd_name(api: Api, mesh: Mesh, tmp_path: Path, name: str) -> None:
    answer = api.rae("POST", "/tokens", {"name": name, "role": "submit"}, who="root")
    assert (answer.status_code, answer.json["rc"]) == (400, "invalid_body")
    with pytest.raises(RaeError, match="a token's name matches"):
        mesh.write(lambda tx: add_token(tx, name, "submit"))
    with pytest.raises(RaeError, match="a token's name matches"):
        mesh.write(lambda tx: keep_token(tx, name, "submit", TOKEN))
    text = json.dumps({name: {"role": "submit", "token": TOKEN}})
    (tmp_path / credentials.TOKENS).write_text(text)
    with pytest.raises(ConfigError, match="must match pattern") as refused:
        credentials.tokens(tmp_path)
    assert TOKEN not in str(refused.value)
    (tmp_path / "other").mkdir()
    wanted = {name: credentials.Token(role="submit", token=TOKEN)}
    with pytest.raises(ControlError, match="a token's name matches"):
        credentials.keep_tokens(tmp_path / "other", wanted)


@pytest.mark.parametrize("name", ODD)
def test_an_old_ledger_with_an_odd_name_starts_and_its_tasks_run(
    api: Api, mesh: Mesh, clock: ManualClock, config: ControlConfig, redis_server: Server,
    tmp_path: Path, name: str,
) -> None:  # fmt: skip
    def as_it_was_once(tx: Tx) -> None:
        sql = "INSERT INTO tokens VALUES ('0', ?, 'submit', ?, 0, NULL)"
        tx.run(sql, name, sha256(TOKEN))

    mesh.write(as_it_was_once)
    mesh.close()
    for _ in range(2):
        again = build(tmp_path, redis_server, clock, config)
        api.client = create_app(again).test_client()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        sent = api.client.post("/tasks", json=ECHO, headers=headers)
        assert sent.status_code == 201, sent.json
        ((lane, there),) = again.lanes.lanes.items()
        shown = again.keeper.queue.lanes
        until(lambda s=shown, name=lane, n=there.queued: s().get(name) == n)
        again.close()
    again = build(tmp_path, redis_server, clock, config)
    try:
        api.client = create_app(again).test_client()
        assert [lane.submitter for lane in again.lanes.lanes.values()] == [name]
        api.join("n1")
        for _ in range(2):
            assert api.result("n1", api.take("n1")).status_code == 200
        assert (again.states["succeeded"], check_folder(tmp_path, deep=False)) == (2, [])
    finally:
        again.close()
