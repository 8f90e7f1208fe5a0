"""The wall clock is set wrong, or right: nothing is lost, repeated or kept waiting for that."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from rae_control.config import ControlConfig
from rae_control.maintenance import chores
from rae_control.mesh.mesh import Mesh
from rae_control.server.app import create_app
from tests.integration.control.harness import ECHO, Api, ManualClock, Server, build, tick

HOUR, DAY = 3600.0, 86400.0


def at(clock: ManualClock, seconds: float) -> str:
    moment = datetime.fromtimestamp(clock.wall(), tz=timezone.utc) + timedelta(seconds=seconds)
    return moment.isoformat()


def test_ninety_one_days_ahead_for_six_seconds_deletes_nothing_and_repeats_nothing(
    api: Api, mesh: Mesh, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    api.join("n1")
    keyed = {**ECHO, "idempotency_key": "once"}
    done = api.submit(keyed)[0]["task_id"]
    assert api.result("n1", api.take("n1")).json["state"] == "succeeded"
    sha = api.blob(b"input")
    soon = {**ECHO, "expires_at": at(clock, DAY), "requirements": {"tags": ["absent"]}}
    waiting = api.submit(soon)[0]["task_id"]
    later = api.submit({**ECHO, "not_before": at(clock, DAY)})[0]["task_id"]
    clock.step(91 * DAY)
    tick(mesh, clock, 6)
    mesh.retention.sweep()
    assert "clock_in_doubt" in caplog.messages
    clock.step(-91 * DAY)
    tick(mesh, clock, 6)
    mesh.retention.sweep()
    assert api.task(done)["state"] == "succeeded"
    assert api.submit(keyed)[0] == {"task_id": done, "state": "succeeded", "created": False}
    assert api.rae("GET", f"/blobs/{sha}").status_code == 200
    assert api.task(waiting)["state"] == "queued"
    assert api.task(later)["state"] == "waiting"


def test_a_clock_that_was_set_for_good_is_followed_after_an_hour(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    later = api.submit({**ECHO, "not_before": at(clock, DAY)})[0]["task_id"]
    clock.step(2 * DAY)
    tick(mesh, clock, 10)
    assert api.task(later)["state"] == "waiting"
    tick(mesh, clock, HOUR)
    assert api.task(later)["state"] == "queued"


@pytest.mark.parametrize("hours", [-1, 1, 24 * 400])
def test_a_back_off_of_seconds_lasts_seconds_whatever_the_clock_is_set_to(
    api: Api, mesh: Mesh, clock: ManualClock, hours: int
) -> None:
    api.join("n1")
    task_id = api.submit(ECHO)[0]["task_id"]
    ref = api.take("n1")
    api.result("n1", ref, "failed", error={"code": "E_EXIT", "message": "no"})
    assert api.task(task_id)["state"] == "waiting"
    clock.step(hours * HOUR)
    tick(mesh, clock, 2)
    assert api.task(task_id)["state"] == "waiting"
    tick(mesh, clock, 4)
    assert api.task(task_id)["state"] == "queued"


def test_a_restart_of_control_in_a_wrong_hour_changes_nothing_of_that(
    tmp_path: Path, redis_server: Server, clock: ManualClock, config: ControlConfig
) -> None:
    mesh = build(tmp_path, redis_server, clock, config)
    api = Api(create_app(mesh).test_client(), clock)
    api.join("n1")
    kept = api.submit(ECHO)[0]["task_id"]
    assert api.result("n1", api.take("n1")).json["state"] == "succeeded"
    failing = api.submit(ECHO)[0]["task_id"]
    ref = api.take("n1")
    api.result("n1", ref, "failed", error={"code": "E_EXIT", "message": "no"})
    mesh.close()
    clock.step(91 * DAY)
    mesh = build(tmp_path, redis_server, clock, config)
    api = Api(create_app(mesh).test_client(), clock)
    tick(mesh, clock, 6)
    mesh.retention.sweep()
    assert api.task(kept)["state"] == "succeeded"
    assert api.task(failing)["state"] == "queued"
    mesh.close()


def test_what_ends_while_the_clock_is_months_behind_is_kept_its_full_time(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    clock.step(-200 * DAY)
    tick(mesh, clock, 3)
    assert api.register("n1").status_code == 200
    done = api.submit(ECHO)[0]["task_id"]
    assert api.result("n1", api.take("n1")).json["state"] == "succeeded"
    clock.step(200 * DAY)
    tick(mesh, clock, 3)
    mesh.retention.sweep()
    assert api.task(done)["state"] == "succeeded"


def test_the_backup_that_was_just_written_stays_though_its_name_is_the_oldest(
    mesh: Mesh, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    for year in (2097, 2098, 2099):
        (folder / f"ledger-{year}0101T000000Z{chores.SUFFIX}").touch()
    chores.run("backup", str(mesh.data), str(folder), 2)
    names = sorted(path.name[7:11] for path in folder.glob(f"*{chores.SUFFIX}"))
    assert len(names) == 2
    assert names[0] < "2097" and names[1] == "2099"
