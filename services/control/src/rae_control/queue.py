"""The tasks' RQ and Redis: with `chores.py`, which has a queue of its own, all that knows them.

Every queued task is an RQ job (JSON serializer, only the task_id in it) in a queue named after its
lane; every slot of a node is an RQ worker entry; so `rq info` tells the truth. Nothing here decides
anything: a claim counts only when the ledger says so, and all of it can be rebuilt from the ledger.

Traps of RQ that this module steps around (seen in 2.12 and 3.0): `rq info` and rq workers expire
started jobs by themselves, so entries live for days and the reaper decides; several-queue dequeue
uses BLPOP, which can lose a job, so one Lua script takes it; a `Worker` lifts the connection's
socket timeout; `rq info` lists only workers of queues that exist, so all slots stand on one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
_ROUND_TRIP = 500  # steps
_FUNCTION = "rae_control.queue.not_for_rq_workers"

# Runs on Redis 6.0 and newer: first queue with a job in it wins.
_CLAIM = """
for i, key in ipairs(KEYS) do
  local id = redis.call('LPOP', key)
  if id then return {i, id} end
end
return false
"""


def not_for_rq_workers(task_id: str) -> None:
    """Stands in each RQ job; an rq worker started on a task lane by mistake ends up here."""
    raise RuntimeError(f"task {task_id} is leased by RAE Mesh, not run by rq workers")


@dataclass(frozen=True, slots=True)
class Op:
    """One step to bring the queue after the ledger: push, drop, start, finish; clear a lane."""

    verb: str
    task_id: str
    lane_id: str
    front: bool = False
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """The Redis server's own words; unknown before the first look."""

    version: str = "0"
    used_memory: int = 0
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
        self._claim_script = self._redis.register_script(_CLAIM)
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

    def ping(self) -> None:
        """Raises QueueUnavailable when Redis is away."""
        with redis_errors():
            self._redis.ping()

    def health(self) -> Health:
        """What the server says of itself."""
        with redis_errors():
            info: Any = self._redis.info()
        return Health(
            version=str(info["redis_version"]),
            used_memory=int(info["used_memory"]),
            aof=bool(info.get("aof_enabled")),
            aof_ok=info.get("aof_last_write_status", "ok") == "ok",
            policy=str(info.get("maxmemory_policy", "unknown")),
        )

    def close(self) -> None:
        """Close all connections."""
        self._redis.close()
        self._worker_redis.close()

    def claim(self, lanes: Sequence[str]) -> tuple[str, str] | None:
        """Take the first task of the first lane that has one: (lane_id, task_id)."""
        if not lanes:
            return None
        with redis_errors():
            found: Any = self._claim_script(keys=[self._queue(lane).key for lane in lanes])
        if not found:
            return None
        return lanes[int(found[0]) - 1], found[1].decode()

    def apply(self, ops: Sequence[Op]) -> None:
        """Bring the queue after the ledger, in order.

        A task that is pushed twice stands there twice: the claim that meets the second one fails
        in the ledger, and that is cheaper than to search a long lane with each push.
        """
        steps = {"push": self._push, "start": self._start, "clear": self._clear}
        for first in range(0, len(ops), _ROUND_TRIP):
            with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
                for op in ops[first : first + _ROUND_TRIP]:
                    steps.get(op.verb, self._finish)(op, pipe)
                pipe.execute()

    def _push(self, op: Op, pipe: Any) -> None:
        queue = self._queue(op.lane_id)
        pipe.sadd(queue.redis_queues_keys, queue.key)
        self._job(op).save(pipeline=pipe, include_meta=False)
        queue.push_job_id(op.task_id, pipeline=pipe, at_front=op.front)

    def _start(self, op: Op, pipe: Any) -> None:
        queue, job = self._queue(op.lane_id), self._job(op)
        pipe.sadd(queue.redis_queues_keys, queue.key)
        job.save(pipeline=pipe, include_meta=False)
        job.prepare_for_execution(op.worker, pipeline=pipe)
        self._executions[op.task_id] = Execution.create(
            job, _DAYS, pipeline=pipe, worker_name=op.worker
        )
        self._worker(op.worker).set_state(WorkerStatus.BUSY, pipeline=pipe)

    def _clear(self, op: Op, pipe: Any) -> None:
        pipe.delete(self._queue(op.lane_id).key)

    def _finish(self, op: Op, pipe: Any) -> None:
        job, queue = self._job(op), self._queue(op.lane_id)
        execution = self._executions.pop(op.task_id, None)
        # Not started by this process (or lost by Redis): look up what the registry still has.
        for item in [execution] if execution else self._executions_of(job, queue):
            item.delete(job, pipeline=pipe)
        pipe.delete(job.key, job.execution_registry.key)
        if op.verb == "drop":
            pipe.lrem(queue.key, 0, op.task_id)
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
        with redis_errors():
            names = {key.rsplit(":", 1)[1] for key in Worker.all_keys(connection=self._redis)}
            # A worker without a dot in its name is a real one, for chores.
            return {
                n for n in names
                if "." in n and self._redis.exists(Worker.redis_worker_namespace_prefix + n)
            }  # fmt: skip

    def lanes(self) -> dict[str, int]:
        """The queues that RQ knows with their lengths."""
        with redis_errors():
            found = Queue.all(connection=self._redis)
            queues = [q for q in found if q.name not in {SLOTS_QUEUE, CHORES_QUEUE}]
            with self._redis.pipeline(transaction=False) as pipe:
                for queue in queues:
                    pipe.llen(queue.key)
                return dict(zip((q.name for q in queues), pipe.execute(), strict=True))

    def task_ids(self, lane_id: str) -> list[str]:
        """What is queued in a lane, in order."""
        with redis_errors():
            return list(self._queue(lane_id).get_job_ids())

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
            self._queues.pop(lane_id, None)

    def _queue(self, lane_id: str) -> Queue:
        # Kept, because RQ examines the serializer anew for each object.
        queue = self._queues.get(lane_id)
        if queue is None:
            queue = Queue(lane_id, connection=self._redis, serializer=JSONSerializer)
            self._queues[lane_id] = queue
        return queue

    def _job(self, op: Op) -> Job:
        return Job.create(
            _FUNCTION,
            args=(op.task_id,),
            id=op.task_id,
            connection=self._redis,
            origin=op.lane_id,
            timeout=-1,
            status=JobStatus.QUEUED,
            description=f"task {op.task_id}",
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
