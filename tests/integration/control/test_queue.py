"""RQ tells the truth, and everything in Redis can be lost."""

from __future__ import annotations

from typing import Any

import gevent
import redis

from rae_control.mesh.mesh import Mesh
from rae_control.queue.keeper import DRIFTED_EVERY, LOOK_S
from tests.integration.control.harness import (
    ECHO,
    Api,
    ManualClock,
    Server,
    rq_info,
    settled,
    shown,
    until,
)


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


def test_while_redis_is_gone_everything_goes_on_and_what_it_missed_is_shown_afterwards(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    api.join("n1")
    redis_server.stop()
    try:
        ids = [ref["task_id"] for ref in api.submit(*[ECHO] * 8)]
        for task_id in ids[:2]:
            ref = api.take("n1")
            assert ref["task_id"] == task_id
            assert api.result("n1", ref).json["state"] == "succeeded"
        assert api.rae("POST", f"/tasks/{ids[2]}/cancel").json["state"] == "cancelled"
        assert api.take("n1")["task_id"] == ids[3]
        until(lambda: not mesh.keeper.available, "the keeper notices that Redis is gone")
        assert api.rae("GET", "/readyz").json["queue"] == "unavailable"
    finally:
        redis_server.start()
    until(lambda: mesh.keeper.available, "the keeper has Redis again")
    settled(mesh)
    (lane,) = mesh.lanes.lanes
    assert shown(redis_server)[0][lane] == (4, 1)
    assert mesh.keeper.queue.task_ids(lane) == ids[4:]


def test_no_job_outlives_its_task_whatever_redis_missed(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    api.join("n1")
    ids = [ref["task_id"] for ref in api.submit(*[ECHO] * 6)]
    settled(mesh)
    redis_server.stop()
    try:
        for task_id in ids[:3]:
            api.rae("POST", f"/tasks/{task_id}/cancel")
        api.result("n1", api.take("n1"))
        until(lambda: not mesh.keeper.available, "the keeper notices that Redis is gone")
    finally:
        redis_server.start()
    until(lambda: mesh.keeper.available, "the keeper has Redis again")
    settled(mesh)
    client = redis.Redis.from_url(redis_server.url)
    assert sorted(client.keys("rq:job:*")) == sorted(f"rq:job:{name}".encode() for name in ids[4:])
    for task_id in ids[4:]:
        api.rae("POST", f"/tasks/{task_id}/cancel")
    settled(mesh)
    assert client.keys("rq:job:*") == []
    client.close()


def test_a_task_that_comes_back_keeps_its_place_in_its_lane(api: Api) -> None:
    api.join("n1", slots=[f"cpu{i}" for i in range(8)])
    ids = [ref["task_id"] for ref in api.submit(*[ECHO] * 8)]
    slots = "slots=" + ",".join(f"cpu{i}" for i in range(8))
    one, two = api.take("n1", slots), api.take("n1", slots)
    # The second comes back, while the first is at work and the third is the oldest that waits.
    api.node("n1", "POST", "/tasks/yield", {**two, "reason": "guard"})
    served = [one["task_id"], *(api.take("n1", slots)["task_id"] for _ in range(7))]
    assert served == ids


def test_counts_are_right_at_once_whatever_leaves_from_the_middle_and_entries_soon(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    ids = [ref["task_id"] for ref in api.submit(*[ECHO] * 9)]
    settled(mesh)
    (lane,) = mesh.lanes.lanes
    for gone in (ids[4], ids[8], ids[0]):
        api.rae("POST", f"/tasks/{gone}/cancel")
    api.rae("POST", f"/tasks/{ids[4]}/requeue")
    settled(mesh)
    assert shown(redis_server)[0][lane] == (7, 0)
    for _ in range(DRIFTED_EVERY):
        mesh.keeper._compare()
    assert mesh.keeper.queue.task_ids(lane) == ids[1:8]
    assert shown(redis_server)[0][lane] == (7, 0)


def test_no_step_of_the_queue_searches_it(api: Api, mesh: Mesh, redis_server: Server) -> None:
    api.join("n1")
    api.submit(*[ECHO] * 200)
    settled(mesh)
    client = redis.Redis.from_url(redis_server.url)
    client.config_resetstat()
    ids = [ref["task_id"] for ref in api.submit(*[ECHO] * 9)]
    ref = api.take("n1")
    api.node("n1", "POST", "/tasks/yield", {**ref, "reason": "guard"})
    api.result("n1", api.take("n1"))
    api.rae("POST", f"/tasks/{ids[3]}/cancel")
    settled(mesh)
    used = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
    client.close()
    assert used & {"lpop", "rpop"}
    assert not used & {"lrem", "lpos", "linsert", "lrange", "keys"}


def test_lanes_that_rq_lost_and_keys_of_another_type_come_back(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    api.join("n1")
    api.submit(*[ECHO] * 3)
    api.take("n1")
    settled(mesh)
    before = shown(redis_server)
    client = redis.Redis.from_url(redis_server.url)
    client.delete("rq:queues")
    mesh.keeper._compare()
    assert shown(redis_server) == before
    (lane,) = mesh.lanes.lanes
    for key in ("rq:queues", "rq:workers", f"rq:wip:{lane}", "rq:worker:n1.cpu0", "rae:shown-by"):
        client.delete(key)
        client.rpush(key, "another program's")
        mesh.keeper._compare_now = True
        mesh.keeper.slots_changed()
        until(lambda k=key: client.type(k) != b"list", "the key is a list no more", 20)
        until(
            lambda: mesh.keeper.available and not mesh.keeper._compare_now,
            "the keeper has compared everything",
            20,
        )
        settled(mesh)
        assert shown(redis_server) == before, key
    client.close()


def test_an_emptied_redis_is_noticed_by_itself_and_shows_each_task_once(
    api: Api, mesh: Mesh, clock: ManualClock, redis_server: Server
) -> None:
    api.join("n1")
    api.submit(*[ECHO] * 5)
    api.take("n1")
    api.take("n1")
    settled(mesh)
    until(lambda: mesh.keeper.compared, "the keeper has compared")
    before = shown(redis_server)
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    clock.advance(LOOK_S)
    mesh.keeper.slots_changed()
    until(lambda: client.get("rae:shown-by"), "the keeper has signed what it shows")
    settled(mesh)
    assert shown(redis_server) == before
    client.close()


def test_names_of_another_program_in_redis_are_left_alone_and_end_nothing(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    api.join("n1")
    api.submit(*[ECHO] * 3)
    settled(mesh)
    (lane,) = mesh.lanes.lanes
    client = redis.Redis.from_url(redis_server.url)
    client.sadd("rq:queues", "celery", b"\xff\xfe", "rq:queue:default", "rq:queue:")
    client.sadd("rq:workers", "celery", b"\xff\xfe", "rq:worker:", "rq:worker:host")
    client.rpush("rq:queue:default", "theirs")
    client.delete(f"rq:queue:{lane}")
    client.set(f"rq:queue:{lane}", "a word where the list should be")
    mesh.keeper._compare()
    assert len(mesh.keeper.queue.task_ids(lane)) == 3
    assert client.lrange("rq:queue:default", 0, -1) == [b"theirs"]
    assert client.sismember("rq:queues", "celery")
    client.close()
    mesh.keeper.slots_changed()
    settled(mesh)
    assert mesh.keeper.available
    assert not any(greenlet.dead for greenlet in mesh._greenlets)


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


def test_a_job_that_stands_twice_in_its_lane_is_removed_once(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    ids = [ref["task_id"] for ref in api.submit(*[ECHO] * 3)]
    settled(mesh)
    (lane,) = mesh.lanes.lanes
    client = redis.Redis.from_url(redis_server.url)
    client.rpush(f"rq:queue:{lane}", ids[1])
    client.close()
    mesh.keeper._compare()
    assert mesh.keeper.queue.task_ids(lane) == ids


def test_a_lane_that_is_rewritten_under_way_counts_each_step_once(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    ids = [ref["task_id"] for ref in api.submit(*[ECHO] * 300)]
    settled(mesh)
    (lane,) = mesh.lanes.lanes
    client = redis.Redis.from_url(redis_server.url)
    client.delete(f"rq:queue:{lane}")
    comparing = gevent.spawn(mesh.keeper._compare)
    while not comparing.dead:
        ids += [ref["task_id"] for ref in api.submit(ECHO)]
        api.rae("POST", f"/tasks/{ids.pop(7)}/cancel")
    comparing.get()
    settled(mesh)
    assert client.llen(f"rq:queue:{lane}") == len(ids)
    client.close()


def test_steps_under_way_are_no_drift_and_make_no_lane_be_read(
    api: Api, mesh: Mesh, redis_server: Server
) -> None:
    client = redis.Redis.from_url(redis_server.url)

    def reads() -> int:
        stats: dict[str, Any] = client.info("commandstats")
        return int(stats.get("cmdstat_lrange", {"calls": 0})["calls"])

    def submit() -> bool:
        api.submit(ECHO)
        return bool(mesh.keeper._ops)

    settled(mesh)
    mesh.keeper._compare()
    before = reads()
    until(submit, "a submit that the keeper has not begun with")
    mesh.keeper._compare()
    assert reads() == before
    settled(mesh)
    client.close()


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
    answer = older.get(timeout=3)
    assert (answer["reasons"][0]["code"], answer["wanted"]) == ("newer_poll", "work")
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
