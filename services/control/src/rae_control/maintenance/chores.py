"""What is done now and then beside the mesh: backups and checks, by an RQ worker of their own.

A queue that no lane is, and one job id for each chore: asked for twice, it is done once.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from redis import Redis
from rq import Queue, Worker
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker

from rae_control.config import ControlConfig
from rae_control.errors import ChoreFailed, ConfigError, ControlError
from rae_control.maintenance.backup import backup, check_folder
from rae_control.queue.rq_queue import CHORES_QUEUE, redis_errors
from rae_protocol.errors import in_words
from rae_protocol.folders import make_folder
from rae_protocol.log import JsonFormatter, facts

RUN = "rae_control.chores.run"  # in jobs of every release
SUFFIX = ".raebackup"
LONGEST_S = 6 * 3600
_KEPT_S = 7 * 86400
log = logging.getLogger(__name__)


def run(name: str, data: str, folder: str | None, keep: int) -> str:
    """Do one chore; returns what came of it. Raises ControlError; either is logged, too."""
    os.nice(10)  # submits go first
    try:
        said = _backup(folder, keep, Path(data)) if name == "backup" else _check(Path(data))
    except (ControlError, OSError) as error:
        text = in_words(error) if isinstance(error, OSError) else str(error)
        log.error("chore_failed", extra=facts(chore=name, error=text))
        raise ChoreFailed(f"{name}: {text}") from error
    log.info("chore_done", extra=facts(chore=name, result=said))
    return said


def newest(folder: Path) -> Path | None:
    """The latest backup."""
    return max(folder.glob(f"ledger-*{SUFFIX}"), default=None)


def _backup(folder: str | None, keep: int, data: Path) -> str:
    if folder is None:
        raise ConfigError("no backup_dir is set; add it to the settings, or `backup FILE`")
    place = Path(folder)
    make_folder(place, 0o700)
    with _alone(place):
        for left in place.glob("*.part"):  # by one that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        target = place / f"ledger-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}{SUFFIX}"
        count = backup(data, target)
        # Its name may be older than others': the clock may have been set back.
        others = sorted(set(place.glob(f"ledger-*{SUFFIX}")) - {target})
        for old in others[: max(0, len(others) + 1 - keep)]:
            old.unlink()
    return f"{target}: {count} files, {target.stat().st_size} bytes"


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    with (place / "backup.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ChoreFailed(f"another backup is being written to {place}; try later") from None
        yield


def _check(data: Path) -> str:
    if found := check_folder(data, deep=True):
        raise ChoreFailed("; ".join(map(str, found[:20])))
    return "all is well"


def enqueue(url: str, password: str | None, name: str, data: Path, config: ControlConfig) -> bool:
    """Have the worker do a chore; False when it waits or runs already. Raises ControlError."""
    job_id = f"_chore-{name}"  # no task's id begins so
    with redis_errors(), closing(Redis.from_url(url, password=password)) as redis:
        queue = Queue(CHORES_QUEUE, connection=redis, serializer=JSONSerializer)
        put: Callable[[], Job] = partial(
            queue.enqueue_call, RUN, (name, str(data), config.backup_dir, config.backup_keep),
            job_id=job_id, timeout=LONGEST_S, result_ttl=_KEPT_S, failure_ttl=_KEPT_S,
            description=f"chore {name}", unique=True,
        )  # fmt: skip
        try:
            put()
        except DuplicateJobError:
            try:
                job = Job.fetch(job_id, connection=redis, serializer=JSONSerializer)
                if job.get_status() in {JobStatus.QUEUED, JobStatus.STARTED}:
                    return False
                job.delete()
            except NoSuchJobError:
                pass  # its time was over just now
            put()
    return True


def has_worker(url: str, password: str | None) -> bool:
    """Whether a worker does chores now. Raises ControlError."""
    with redis_errors(), closing(Redis.from_url(url, password=password)) as redis:
        queue = Queue(CHORES_QUEUE, connection=redis, serializer=JSONSerializer)
        return any(map(_lives, Worker.all(queue=queue, serializer=JSONSerializer)))


def _lives(worker: BaseWorker) -> bool:
    """Whether its process is there: Redis keeps one that was killed for minutes."""
    if not worker.pid or worker.hostname != socket.gethostname():
        return True
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def work(url: str, password: str | None) -> None:
    """Do chores until SIGTERM, one after the other. Raises QueueUnavailable."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    with redis_errors(), closing(Redis.from_url(url, password=password)) as redis:
        queue = Queue(CHORES_QUEUE, connection=redis, serializer=JSONSerializer)
        redis.sadd(queue.redis_queues_keys, queue.key)  # `rq info` shows workers of known queues
        # A name of its own each time: that of one which was killed may still be there.
        name = f"{CHORES_QUEUE}-{secrets.token_hex(4)}"
        worker = Worker([queue], name=name, connection=redis, serializer=JSONSerializer)
        worker.log_result_lifespan = False
        worker.work(logging_level="WARNING")
