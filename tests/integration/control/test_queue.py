"""RQ tells the truth, and everything in Redis can be lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gevent
import redis

from rae_control.mesh import Mesh

from .conftest import ECHO, Api, Server, until


def rq_info(server: Server, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("rq")), "info", "-u", server.url,
               "-S", "rq.serializers.JSONSerializer", "--raw", *arguments]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def shown(server: Server) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """What rq info shows: queues with (queued, executing), workers with their state."""
    queues, workers = {}, {}
    for line in rq_info(server).splitlines():
        words = line.replace(",", "").split()
        if words[0] == "queue":
            queues[words[1]] = (int(words[2]), int(words[3]))
        elif words[0] == "worker":
            workers[words[1]] = line.split(")")[1].split()[0]
    return queues, workers


def settled(mesh: Mesh) -> None:
    until(lambda: not mesh.keeper._ops and not mesh.keeper._slots_changed)
    gevent.sleep(0.05)


def state_of(mesh: Mesh) -> list[Any]:
    sql = "SELECT task_id, state, attempts, lease_id FROM tasks ORDER BY seq"
    events = "SELECT count(*) FROM events"
    return [
        mesh.read(lambda db: list(db.execute(sql))),
        mesh.read(lambda db: db.execute(events).get),
    ]


def test_rq_info_lists_slots_as_workers_and_lanes_as_queues_with_true_counts(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    api.join("n1")
    api.submit(*[ECHO] * 7, *[{**ECHO, "priority": 9}] * 3)
    refs = [api.take("n1"), api.take("n1")]
    settled(mesh)
    queues, workers = shown(redis_server)
    counts = sorted(value for name, value in queues.items() if name != "slots")
    assert counts == [(1, 2), (7, 0)]
    assert workers == {"n1.cpu0": "busy", "n1.cpu1": "busy"}
    api.result("n1", refs[0])
    settled(mesh)
    queues, workers = shown(redis_server)
    assert sorted(workers.values()) == ["busy", "idle"]
    assert sum(executing for _, executing in queues.values()) == 1


def test_rq_info_again_and_again_changes_nothing(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    api.join("n1")
    api.submit(*[ECHO] * 5)
    api.take("n1")
    settled(mesh)
    before, queues = state_of(mesh), shown(redis_server)
    for _ in range(10):
        rq_info(redis_server)
    assert (state_of(mesh), shown(redis_server)) == (before, queues)


def test_after_flushall_the_queue_is_rebuilt_and_nothing_runs_twice(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    api.join("n1", slots=[f"cpu{i}" for i in range(5)])
    ids = [t["task_id"] for t in api.submit(*[ECHO] * 500)]
    refs = [api.take("n1", "slots=cpu0,cpu1,cpu2,cpu3,cpu4") for _ in range(5)]
    settled(mesh)
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    client.close()
    mesh.keeper._compare()
    queues, workers = shown(redis_server)
    lane = next(name for name in queues if name != "slots")
    assert queues[lane] == (495, 5)
    assert sorted(workers.values()) == ["busy"] * 5
    assert mesh.keeper.queue.task_ids(lane) == [
        i for i in ids if i not in {r["task_id"] for r in refs}
    ]
    for ref in refs:
        assert api.result("n1", ref).json["state"] == "succeeded"
    assert api.task(refs[0]["task_id"])["attempts"] == 1


def test_while_redis_is_away_everything_but_claims_goes_on(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.claim("n1")
    settled(mesh)
    redis_server.stop()
    try:
        assert api.node("n1", "POST", "/tasks/ack", ref).json["state"] == "running"
        task_id = api.submit(ECHO)[0]["task_id"]
        cancelled = api.submit(ECHO)[0]["task_id"]
        assert api.rae("POST", f"/tasks/{cancelled}/cancel").json["state"] == "cancelled"
        assert api.result("n1", ref).json["state"] == "succeeded"
        until(lambda: not mesh.keeper.available)
        assert api.poll("n1")["reasons"][0]["code"] == "queue_unavailable"
        assert "Redis" in api.task(task_id)["why"][0]
        assert api.rae("GET", "/tasks").status_code == 200
    finally:
        redis_server.start()
    assert until(lambda: api.poll("n1").get("task"))
    assert api.task(task_id)["state"] == "leased"


def test_a_swapped_job_is_found_by_the_full_comparison(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    task_id = api.submit(ECHO)[0]["task_id"]
    settled(mesh)
    lane = next(iter(mesh.lanes.lanes))
    client = redis.Redis.from_url(redis_server.url)
    client.lpop(f"rq:queue:{lane}")
    client.rpush(f"rq:queue:{lane}", "no-such-task")
    client.close()
    mesh.keeper._compare_now = True
    mesh.keeper._compare()
    assert mesh.keeper.queue.task_ids(lane) == [task_id]


def test_l19_a_doubled_entry_goes_and_a_claim_under_way_is_not_pushed_again(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    ids = [ref["task_id"] for ref in api.submit(*[ECHO] * 3)]
    settled(mesh)
    (lane,) = mesh.lanes.lanes
    client = redis.Redis.from_url(redis_server.url)
    client.rpush(f"rq:queue:{lane}", ids[1])
    client.lrem(f"rq:queue:{lane}", 1, ids[0])
    client.close()
    mesh.keeper.in_flight.add(ids[0])
    mesh.keeper._compare_now = True
    mesh.keeper._compare()
    assert mesh.keeper.queue.task_ids(lane) == ids[1:]
    mesh.keeper.in_flight.clear()


def test_two_submitters_share_the_node_whatever_they_queued(api: Api, mesh: Mesh) -> None:
    api.join("n1")
    for _ in range(10):
        api.submit(*[ECHO] * 1000, who="alice")
    api.submit(*[ECHO] * 10, who="bob")
    settled(mesh)
    order = []
    for _ in range(20):
        ref = api.take("n1")
        order.append(
            mesh.read(
                lambda db, r=ref: (
                    db.execute("SELECT submitter FROM tasks WHERE task_id = ?", (r["task_id"],)).get
                )
            )
        )
        api.result("n1", ref)
    assert order.count("bob") == 10
    assert "alice alice alice" not in " ".join(order)


def test_priority_goes_before_age(api: Api) -> None:
    api.join("n1")
    api.submit(ECHO, {**ECHO, "task_id": "urgent", "priority": 9})
    assert api.take("n1")["task_id"] == "urgent"


def test_an_open_poll_gets_a_task_the_moment_it_is_submitted(api: Api) -> None:
    api.join("n1")
    waiting = gevent.spawn(api.poll, "n1", "wait=20&slots=cpu0")
    gevent.sleep(0.05)
    api.submit(ECHO)
    assert waiting.get(timeout=3)["task"]


def test_a_newer_poll_of_the_session_answers_the_older_one(api: Api) -> None:
    api.join("n1")
    older = gevent.spawn(api.poll, "n1", "wait=20&slots=")
    gevent.sleep(0.05)
    newer = gevent.spawn(api.poll, "n1", "wait=20&slots=cpu0")
    assert older.get(timeout=3)["reasons"][0]["code"] == "newer_poll"
    api.submit(ECHO)
    assert newer.get(timeout=3)["task"]


def test_a_poll_and_a_task_say_why_nothing_runs(api: Api) -> None:
    task_id = api.submit({**ECHO, "requirements": {"tags": ["studio"], "vram_gb": 24}})[0][
        "task_id"
    ]
    assert api.task(task_id)["why"] == ["No node is online."]
    api.join("n1")
    reason = api.poll("n1")["reasons"][0]
    assert reason["code"] == "no_match"
    assert "studio" in " ".join(api.task(task_id)["why"])
    assert "24 GB of VRAM" in " ".join(api.task(task_id)["why"])
    api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1", "availability": "owner"})
    plain = api.submit({**ECHO, "priority": 9})[0]["task_id"]
    assert "its owner is there" in api.task(plain)["why"][0]


def test_events_and_task_details_can_wait(api: Api) -> None:
    api.join("n1")
    cursor = api.rae("GET", "/events").json["next"]
    feed = gevent.spawn(api.rae, "GET", f"/events?after={cursor}&wait=20")
    gevent.sleep(0.02)
    task_id = api.submit(ECHO)[0]["task_id"]
    assert feed.get(timeout=3).json["events"][0]["task_id"] == task_id
    end = gevent.spawn(api.rae, "GET", f"/tasks/{task_id}?wait=20")
    moved = gevent.spawn(api.rae, "GET", f"/tasks/{task_id}?wait=20&state=queued")
    ref = api.take("n1")
    assert moved.get(timeout=3).json["state"] in {"leased", "running"}
    api.result("n1", ref)
    assert end.get(timeout=3).json["state"] == "succeeded"
