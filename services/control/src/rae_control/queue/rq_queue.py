"""The tasks' RQ and Redis: with `chores.py`, which has a queue of its own, all that knows them.

Every queued task is an RQ job (JSON serializer, only the task_id in it) in a queue named after its
lane; every slot of a node is an RQ worker entry; so `rq info` tells the truth. Nothing is read from
here to decide anything: claims come from the ledger's own index, so work goes on without Redis, and
all of this can be rebuilt from the ledger.

No step costs by the length of a queue. A task that leaves from the middle of a queue takes the
first entry with it: the length is right at once, and the entries when the lane is next rewritten.

Traps of RQ that this module steps around (seen in 2.12 and 3.0): `rq info` and rq workers expire
started jobs by themselves, so entries live for days and the reaper decides; a `Worker` lifts the
connection's socket timeout; `rq info` lists only workers of queues that exist, so all slots stand
on one; `Queue.all` and `Worker.all_keys` fail on any name that another program left there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Queue, Worker
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from rae_control.errors import QueueUnavailable

SLOTS_QUEUE = "slots"
CHORES_QUEUE = "rae-chores"  # an ordinary queue with an rq worker: `chores.py`
_DAYS = 30 * 86400
_MARK = "rae:shown-by"
_ROUND_TRIP = 100  # steps; others go on in between
_FUNCTION = "rae_control.queue.not_for_rq_workers"

# In between stands the submitter's name: in old ledgers anything.
_LANE = re.compile(r"p[0-9]\..*\.[0-9a-f]{10}", re.DOTALL)

# Runs on Redis 6.0 and newer: one entry goes, the task's own where that costs nothing.
_LEAVE = """
if redis.call('LINDEX', KEYS[1], -1) == ARGV[1] and redis.call('LINDEX', KEYS[1], 0) ~= ARGV[1] then
  return redis.call('RPOP', KEYS[1])
end
return redis.call('LPOP', KEYS[1])
"""


@dataclass(frozen=True, slots=True)
class Op:
    """One step to bring the queue after the ledger.

    push, leave (to be started), drop (without a start), start, finish (a started one).
    `event`: the ledger's event that it follows. `place`: where a pushed task belongs in its lane.
    """

    verb: str
    task_id: str
    lane_id: str
    event: int
    place: Literal["front", "middle", "back"] = "back"
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """The Redis server's own words; unknown before the first look."""

    version: str = "0"
    used_memory: int = 0
    run_id: str = ""
    aof: bool = False
    aof_ok: bool = False
    policy: str = "unknown"


class RqQueue:
    """The queue as the mesh needs it. Methods raise QueueUnavailable when Redis does not answer."""

    def __init__(self, url: str, timeout_s: float = 2.0, password: str | None = None) -> None:
        self._timeout_s = timeout_s
        self._password = password
        self._redis = self._connect(url)
        # Worker objects change their connection's timeout: they get a pool of their own.
        self._worker_redis = self._connect(url)
        self._executions: dict[str, Execution] = {}
        self._queues: dict[str, Queue] = {}
        self._workers: dict[str, Worker] = {}

    def _connect(self, url: str) -> redis.Redis:
        return redis.Redis.from_url(
            url,
            password=self._password,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            retry=Retry(NoBackoff(), 1),
        )

    def health(self) -> Health:
        """What the server says of itself."""
        with redis_errors():
            info: Any = self._redis.info()
        return Health(
            version=str(info["redis_version"]),
            used_memory=int(info["used_memory"]),
            run_id=str(info["run_id"]),
            aof=bool(info.get("aof_enabled")),
            aof_ok=info.get("aof_last_write_status", "ok") == "ok",
            policy=str(info.get("maxmemory_policy", "unknown")),
        )

    def close(self) -> None:
        """Close all connections."""
        self._redis.close()
        self._worker_redis.close()

    def apply(self, ops: Sequence[Op]) -> set[str]:
        """Bring the queue after the ledger, in order; returns lanes whose entries drifted."""
        steps = {
            "push": self._push, "leave": self._leave, "drop": self._drop, "start": self._start,
            "finish": self._finish,
        }  # fmt: skip
        drifted = {op.lane_id for op in ops if op.place == "middle"}
        for first in range(0, len(ops), _ROUND_TRIP):
            left: list[tuple[int, Op]] = []
            with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
                for op in ops[first : first + _ROUND_TRIP]:
                    if op.verb in {"leave", "drop"}:
                        left.append((len(pipe), op))
                    steps[op.verb](op, pipe)
                results = pipe.execute()
            drifted |= {op.lane_id for at, op in left if results[at] != op.task_id.encode()}
        return drifted

    def rewrite(self, lane_id: str, task_ids: Sequence[str]) -> None:
        """Make these, in this order, all that is queued in a lane."""
        queue = self._queue(lane_id)
        part = f"{queue.key}:part"
        with redis_errors():
            self._redis.delete(part)
            for first in range(0, len(task_ids), _ROUND_TRIP):
                self._append(queue, part, task_ids[first : first + _ROUND_TRIP])
            with self._redis.pipeline() as pipe:
                if task_ids:
                    pipe.sadd(queue.redis_queues_keys, queue.key)
                    pipe.rename(part, queue.key)
                else:
                    pipe.delete(queue.key)
                pipe.execute()

    def _append(self, queue: Queue, key: str, task_ids: Sequence[str]) -> None:
        known: Any = self._redis.exists(*(Job.key_for(task_id) for task_id in task_ids))
        with self._redis.pipeline(transaction=False) as pipe:
            if known < len(task_ids):
                for task_id in task_ids:
                    self._job(task_id, queue.name).save(pipeline=pipe, include_meta=False)
            pipe.rpush(key, *task_ids)
            pipe.execute()

    def _push(self, op: Op, pipe: Any) -> None:
        queue = self._queue(op.lane_id)
        pipe.sadd(queue.redis_queues_keys, queue.key)
        self._job(op.task_id, op.lane_id).save(pipeline=pipe, include_meta=False)
        queue.push_job_id(op.task_id, pipeline=pipe, at_front=op.place == "front")

    def _leave(self, op: Op, pipe: Any) -> None:
        pipe.eval(_LEAVE, 1, self._queue(op.lane_id).key, op.task_id)

    def _drop(self, op: Op, pipe: Any) -> None:
        self._leave(op, pipe)
        pipe.delete(Job.key_for(op.task_id))

    def _start(self, op: Op, pipe: Any) -> None:
        queue, job = self._queue(op.lane_id), self._job(op.task_id, op.lane_id)
        pipe.sadd(queue.redis_queues_keys, queue.key)
        job.save(pipeline=pipe, include_meta=False)
        job.prepare_for_execution(op.worker, pipeline=pipe)
        if (older := self._executions.pop(op.task_id, None)) is not None:
            older.delete(job, pipeline=pipe)
        self._executions[op.task_id] = Execution.create(
            job, _DAYS, pipeline=pipe, worker_name=op.worker
        )
        self._worker(op.worker).set_state(WorkerStatus.BUSY, pipeline=pipe)

    def _finish(self, op: Op, pipe: Any) -> None:
        job, queue = self._job(op.task_id, op.lane_id), self._queue(op.lane_id)
        execution = self._executions.pop(op.task_id, None)
        # Not started by this process (or lost by Redis): look up what the registry still has.
        for item in [execution] if execution else self._executions_of(job, queue):
            item.delete(job, pipeline=pipe)
        pipe.delete(job.key, job.execution_registry.key)
        if op.worker:
            self._worker(op.worker).set_state(WorkerStatus.IDLE, pipeline=pipe)

    def _executions_of(self, job: Job, queue: Queue) -> list[Execution]:
        members: Any = self._redis.zrange(queue.started_job_registry.key, 0, -1)
        prefix = f"{job.id}:".encode()
        return [
            Execution.from_composite_key(member.decode(), connection=self._redis)
            for member in members
            if member.startswith(prefix)
        ]

    def set_slots(self, slots: Sequence[str]) -> set[str]:
        """Make the worker entries exactly these (`node.slot`); returns those made afresh."""
        with redis_errors():
            self._redis.sadd("rq:queues", self._queue(SLOTS_QUEUE).key)
            have = self.slots()
            for name in have - set(slots):
                self._worker(name).register_death()  # type: ignore[no-untyped-call]
                self._redis.delete(self._worker(name).key)
                del self._workers[name]
            fresh = set(slots) - have
            for name in sorted(fresh):
                worker = self._worker(name)
                self._redis.delete(worker.key)
                worker.register_birth()  # type: ignore[no-untyped-call]
                worker.set_state(WorkerStatus.IDLE)
            self._worker_redis.connection_pool.connection_kwargs["socket_timeout"] = self._timeout_s
        return fresh

    def slots(self) -> set[str]:
        """The names of the worker entries whose hash exists."""
        prefix = Worker.redis_worker_namespace_prefix
        with redis_errors():
            names = [key[len(prefix) :] for key in self._members("rq:workers", prefix)]
            # A worker without a dot in its name is a real one, for chores.
            ours = [name for name in names if "." in name]
            with self._redis.pipeline(transaction=False) as pipe:
                for name in ours:
                    pipe.exists(prefix + name)
                there = pipe.execute()
        return {name for name, found in zip(ours, there, strict=True) if found}

    def lanes(self) -> dict[str, int]:
        """The lanes that RQ knows, with their lengths; -1 where another kind of value stands."""
        prefix = Queue.redis_queue_namespace_prefix
        with redis_errors():
            names = [key[len(prefix) :] for key in self._members("rq:queues", prefix)]
            lanes = [name for name in names if _LANE.fullmatch(name)]
            with self._redis.pipeline(transaction=False) as pipe:
                for lane in lanes:
                    pipe.llen(prefix + lane)
                lengths = pipe.execute(raise_on_error=False)
        return {
            lane: length if isinstance(length, int) else -1
            for lane, length in zip(lanes, lengths, strict=True)
        }

    def _members(self, key: str, prefix: str) -> list[str]:
        """Those of a set that begin as ours do; others are another program's."""
        found: Any = self._redis.smembers(key)
        names = [name.decode(errors="replace") for name in found]
        return [name for name in names if name.startswith(prefix)]

    def task_ids(self, lane_id: str) -> list[str]:
        """What is queued in a lane, in order."""
        with redis_errors():
            return list(self._queue(lane_id).get_job_ids())

    def show(self, lane_ids: Sequence[str]) -> None:
        """Have RQ list these lanes."""
        if lane_ids:
            keys = [self._queue(lane_id).key for lane_id in lane_ids]
            with redis_errors():
                self._redis.sadd("rq:queues", *keys)

    def heal(self, lane_ids: Sequence[str], slots: Sequence[str]) -> None:
        """Remove what stands in the place of our keys and is of another type."""
        worker = Worker.redis_worker_namespace_prefix
        kinds = {"rq:queues": b"set", "rq:workers": b"set"}
        kinds |= {self._queue(lane).started_job_registry.key: b"zset" for lane in lane_ids}
        kinds |= {f"{worker}{name}": b"hash" for name in slots}
        with redis_errors():
            for first in range(0, len(kinds), _ROUND_TRIP):
                some = list(kinds)[first : first + _ROUND_TRIP]
                with self._redis.pipeline(transaction=False) as pipe:
                    for key in some:
                        pipe.type(key)
                    found = pipe.execute()
                for key, kind in zip(some, found, strict=True):
                    if kind not in {b"none", kinds[key]}:
                        self._redis.delete(key)

    def mark(self, name: str) -> None:
        """Leave a mark that goes when somebody empties Redis."""
        with redis_errors():
            self._redis.set(_MARK, name)

    def marked(self, name: str) -> bool:
        """Whether the mark is still there."""
        with redis_errors():
            return bool(self._redis.get(_MARK) == name.encode())

    def jobs(self) -> list[str]:
        """The tasks that have a job."""
        prefix, out = Job.redis_job_namespace_prefix, list[str]()
        with redis_errors():
            names = [key.decode() for key in self._redis.scan_iter(f"{prefix}*", count=1000)]
            for first in range(0, len(names), _ROUND_TRIP):
                some = names[first : first + _ROUND_TRIP]
                with self._redis.pipeline(transaction=False) as pipe:
                    for name in some:
                        pipe.hget(name, "origin")
                    origins = pipe.execute(raise_on_error=False)
                out += [
                    name[len(prefix) :]
                    for name, origin in zip(some, origins, strict=True)
                    if isinstance(origin, bytes)
                    and _LANE.fullmatch(origin.decode(errors="replace"))
                ]
        return out

    def forget(self, task_ids: Sequence[str]) -> None:
        """Remove jobs of tasks that are neither queued nor leased."""
        for first in range(0, len(task_ids), _ROUND_TRIP):
            some = task_ids[first : first + _ROUND_TRIP]
            with redis_errors():
                self._redis.delete(*(Job.key_for(task_id) for task_id in some))

    def started(self, lane_id: str) -> set[str]:
        """The tasks of a lane that RQ shows as executing."""
        with redis_errors():
            registry = self._queue(lane_id).started_job_registry
            return {str(i).split(":")[0] for i in registry.get_job_ids(cleanup=False)}

    def forget_lane(self, lane_id: str) -> None:
        """A lane with nothing queued and nothing executing goes."""
        with redis_errors():
            queue = self._queue(lane_id)
            self._redis.srem(queue.redis_queues_keys, queue.key)
            self._redis.delete(queue.key)
            self._queues.pop(lane_id, None)

    def _queue(self, lane_id: str) -> Queue:
        # Kept, because RQ examines the serializer anew for each object.
        queue = self._queues.get(lane_id)
        if queue is None:
            queue = Queue(lane_id, connection=self._redis, serializer=JSONSerializer)
            self._queues[lane_id] = queue
        return queue

    def _job(self, task_id: str, lane_id: str) -> Job:
        return Job.create(
            _FUNCTION,
            args=(task_id,),
            id=task_id,
            connection=self._redis,
            origin=lane_id,
            timeout=-1,
            status=JobStatus.QUEUED,
            description=f"task {task_id}",
            serializer=JSONSerializer,
        )

    def _worker(self, name: str) -> Worker:
        if name in self._workers:
            return self._workers[name]
        worker = Worker(
            [Queue(SLOTS_QUEUE, connection=self._worker_redis, serializer=JSONSerializer)],
            name=name,
            connection=self._worker_redis,
            worker_ttl=_DAYS,
            job_monitoring_interval=_DAYS,
            prepare_for_work=False,
            serializer=JSONSerializer,
        )
        worker.hostname, worker.pid, worker.ip_address = name.rsplit(".", 1)[0], 0, "unknown"
        self._workers[name] = worker
        return worker


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Everything that says "Redis is not there now" as one error.

    ResponseError is among them: a server that is loading its file or out of memory answers so.
    """
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise QueueUnavailable(f"Redis does not answer; see that it runs: {error}") from error
