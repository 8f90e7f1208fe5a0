"""What `make bench` asks of the peers, in an environment of their own: rq, Celery, Ray.

`python peer.py PEER REDIS_URL` prints one JSON line: `start_ms` (enqueue to the first line of the
job, one at a time on an idle worker), `per_s` (jobs enqueued one by one and all done, a second)
and, where a peer can, `batched_per_s`. rq's and Celery's queue and results are in the given Redis,
which syncs every write; Ray keeps both in memory only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SAMPLES, JOBS, PAUSE_S = 200, 400, 0.02
HERE = str(Path(__file__).parent)
Found = dict[str, object]


def now() -> float:
    """The whole job: tell when it began."""
    return time.time()


def per_s(work: Callable[[], object]) -> float:
    """How many jobs a second."""
    began = time.time()
    work()
    return JOBS / (time.time() - began)


def measured(
    enqueue: Callable[[], Any], value: Callable[[Any], float], wait: Callable[[list[Any]], object]
) -> Found:
    """The numbers of a peer: how a job is enqueued, and its value or many jobs waited for."""
    value(enqueue())
    start = []
    for _ in range(SAMPLES):
        began = time.time()
        start.append(1000 * (value(enqueue()) - began))
        time.sleep(PAUSE_S)
    every = per_s(lambda: wait([enqueue() for _ in range(JOBS)]))
    return {"start_ms": start, "per_s": every}


@contextmanager
def worker(*command: str) -> Iterator[None]:
    """One worker, while the block runs."""
    process = subprocess.Popen(
        [sys.executable, *command], env={**os.environ, "PYTHONPATH": HERE},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def rq_peer(url: str, worker_class: str) -> Found:
    """One worker, forking (`Worker`) or not (`SimpleWorker`)."""
    from redis import Redis
    from rq import Queue
    from rq.job import Job

    queue = Queue("bench", connection=Redis.from_url(url))

    def value(job: Job) -> float:
        while not (result := job.latest_result()):
            time.sleep(0.002)
        return float(str(result.return_value))

    def batched() -> None:
        data = [Queue.prepare_data("peer.now", result_ttl=600) for _ in range(JOBS)]
        parts = [data[place : place + 100] for place in range(0, JOBS, 100)]
        value([job for part in parts for job in queue.enqueue_many(part)][-1])

    command = ["-m", "rq.cli", "worker", "--quiet", "-u", url, "bench"]
    with worker(*command, "--worker-class", f"rq.worker.{worker_class}"):
        found = measured(
            lambda: queue.enqueue("peer.now", result_ttl=600), value, lambda jobs: value(jobs[-1])
        )
        return {**found, "batched_per_s": per_s(batched)}


def celery_app(url: str) -> Any:
    """The application on both sides; a job counts as taken only when it is done."""
    from celery import Celery

    where = url.replace("unix://", "redis+socket://")
    app = Celery("peer", broker=where, backend=where)
    app.conf.update(
        task_acks_late=True, worker_prefetch_multiplier=1, result_expires=600,
        broker_connection_retry_on_startup=True,
    )  # fmt: skip
    app.task(name="now")(now)
    return app


def celery_peer(url: str) -> Found:
    """One prefork worker with one process."""
    job = celery_app(url).tasks["now"]
    with worker(str(Path(__file__)), "celery-worker", url):
        return measured(
            job.delay, lambda one: float(one.get(timeout=60)),
            lambda jobs: [one.get(timeout=120) for one in jobs],
        )  # fmt: skip


def ray_peer(_url: str) -> Found:
    """A local cluster with one CPU."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
                 _temp_dir=folder)  # fmt: skip
        try:
            return measured(ray.remote(now).remote, ray.get, ray.get)
        finally:
            ray.shutdown()


def main() -> int:
    """Entry point."""
    peer, url = sys.argv[1:3]
    if peer == "celery-worker":
        quiet = ("--concurrency=1", "--loglevel=ERROR", "--without-gossip", "--without-mingle")
        celery_app(url).worker_main(["worker", *quiet])
        return 0
    found = {
        "rq Worker": lambda: rq_peer(url, "Worker"),
        "rq SimpleWorker": lambda: rq_peer(url, "SimpleWorker"),
        "Celery": lambda: celery_peer(url),
        "Ray": lambda: ray_peer(url),
    }[peer]()
    print("RESULT " + json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
