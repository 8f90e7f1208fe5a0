"""What `make bench` asks of the peers, in an environment of their own: rq, Celery, Ray.

`python bench_peer.py PEER REDIS_URL` prints one JSON line: `start_ms` (enqueue to the first line of
the job, one at a time on an idle worker), `per_s` (jobs enqueued one by one and all done, a second)
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
from pathlib import Path
from typing import Any

SAMPLES, JOBS, PAUSE_S = 200, 400, 0.02
HERE = str(Path(__file__).parent)


def now() -> float:
    """The whole job: tell when it began."""
    return time.time()


def rq_peer(url: str, worker_class: str) -> dict[str, object]:
    """One worker, forking (`Worker`) or not (`SimpleWorker`)."""
    from redis import Redis
    from rq import Queue
    from rq.job import Job

    connection = Redis.from_url(url)
    queue = Queue("bench", connection=connection)
    command = [sys.executable, "-m", "rq.cli", "worker", "--quiet", "-u", url, "bench"]
    command += ["--worker-class", f"rq.worker.{worker_class}"]
    worker = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": HERE})
    try:

        def value(job: Job) -> float:
            while not (result := job.latest_result()):
                time.sleep(0.002)
            return float(str(result.return_value))

        def enqueue() -> Job:
            return queue.enqueue("bench_peer.now", result_ttl=600)

        value(enqueue())
        start = []
        for _ in range(SAMPLES):
            began = time.time()
            start.append(1000 * (value(enqueue()) - began))
            time.sleep(PAUSE_S)
        began = time.time()
        last = [enqueue() for _ in range(JOBS)][-1]
        value(last)
        singly = JOBS / (time.time() - began)
        began = time.time()
        data = [Queue.prepare_data("bench_peer.now", result_ttl=600) for _ in range(JOBS)]
        value(
            [
                job
                for place in range(0, JOBS, 100)
                for job in queue.enqueue_many(data[place : place + 100])
            ][-1]
        )
        return {"start_ms": start, "per_s": singly, "batched_per_s": JOBS / (time.time() - began)}
    finally:
        worker.terminate()
        worker.wait(20)


def celery_app(url: str) -> Any:
    """The application on both sides; a job counts as taken only when it is done."""
    from celery import Celery

    app = Celery(
        "bench_peer",
        broker=url.replace("unix://", "redis+socket://"),
        backend=url.replace("unix://", "redis+socket://"),
    )
    app.conf.update(
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        result_expires=600,
        broker_connection_retry_on_startup=True,
    )
    app.task(name="now")(now)
    return app


def celery_peer(url: str) -> dict[str, object]:
    """One prefork worker with one process."""
    app = celery_app(url)
    command = [sys.executable, str(Path(__file__)), "celery-worker", url]
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        job = app.tasks["now"]
        job.delay().get(timeout=60)
        start = []
        for _ in range(SAMPLES):
            began = time.time()
            start.append(1000 * (job.delay().get(timeout=60) - began))
            time.sleep(PAUSE_S)
        began = time.time()
        for one in [job.delay() for _ in range(JOBS)]:
            one.get(timeout=120)
        return {"start_ms": start, "per_s": JOBS / (time.time() - began)}
    finally:
        worker.terminate()
        worker.wait(20)


def ray_peer(_url: str) -> dict[str, object]:
    """A local cluster with one CPU."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            _temp_dir=folder,
        )
        try:
            job = ray.remote(now)
            ray.get(job.remote())
            start = []
            for _ in range(SAMPLES):
                began = time.time()
                start.append(1000 * (ray.get(job.remote()) - began))
                time.sleep(PAUSE_S)
            began = time.time()
            ray.get([job.remote() for _ in range(JOBS)])
            return {"start_ms": start, "per_s": JOBS / (time.time() - began)}
        finally:
            ray.shutdown()


def main() -> int:
    """Entry point."""
    peer, url = sys.argv[1:3]
    if peer == "celery-worker":
        celery_app(url).worker_main(
            [
                "worker",
                "--concurrency=1",
                "--loglevel=ERROR",
                "--without-gossip",
                "--without-mingle",
            ]
        )
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
