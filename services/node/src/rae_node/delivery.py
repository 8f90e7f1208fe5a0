"""Gets the spool's entries to control: at once by the task's own thread, else by a patient one."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from rae_node.log import EventLog
from rae_node.settings import Settings
from rae_node.spool import Entry, Spool
from rae_node.verdicts import Verdict, verdict
from rae_protocol.errors import RaeError, RemoteError, Unreachable
from rae_protocol.node_client import NodeClient
from rae_protocol.transport import Backoff


class Delivery:
    """Delivers until control answers. `call` makes a call of the session (Link.call)."""

    def __init__(
        self,
        client: NodeClient,
        spool: Spool,
        settings: Settings,
        log: EventLog,
        *,
        keep_trying: bool,
        call: Callable[[Callable[[], None]], None],
    ) -> None:
        self._client, self._spool, self._log = client, spool, log
        self._keep_trying, self._call = keep_trying, call
        self._backoff = Backoff(base_s=settings.retry_base_sec, cap_s=settings.spool_retry_cap_sec)
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._wake = threading.Event()
        self._stopping = False

    def start(self) -> None:
        """Begin to retry what is left over."""
        threading.Thread(target=self._run, name="delivery", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wake.set()

    def wake(self) -> None:
        """Control is back: try now."""
        self._wake.set()

    def deliver(self, lease_id: str) -> bool:
        """One try for this lease now; whether it is done with. What is not is retried later."""
        entry = self._spool.take(lease_id)
        done = entry is None or self._try(entry)
        if not done:
            self._wake.set()
        return done

    def _run(self) -> None:
        failures = 0
        while not self._stopping:
            self._wake.clear()
            entry = self._spool.take()
            if entry is None:
                self._wake.wait()
            elif self._try(entry):
                failures = 0
            else:
                self._wake.wait(self._backoff.delay(failures, self._rng) + 0.05)
                failures += 1

    def _try(self, entry: Entry) -> bool:
        try:
            self._call(lambda: self._send(entry))
        except RaeError as error:
            return self._settle(entry, error)
        except Exception as error:  # the loop's one catch; the next try comes after a pause
            self._log.error("delivery_failed", task_id=entry.lease.task_id, error=repr(error))
            self._spool.give_back(entry)
            return False
        self._spool.remove(entry)
        self._log.info(f"{entry.kind}_delivered", task_id=entry.lease.task_id)
        return True

    def _send(self, entry: Entry) -> None:
        if entry.kind == "result":
            self._client.result(entry.result(), entry.artifacts())
        else:
            body = entry.body
            self._client.yield_task(
                entry.lease, body["reason"], body.get("detail"), body.get("stopped_ms")
            )

    def _settle(self, entry: Entry, error: RaeError) -> bool:
        found = verdict(error)
        task_id = entry.lease.task_id
        if found is Verdict.STALE or (found is Verdict.REFUSED and error.status == 404):
            self._log.warning(f"{entry.kind}_dropped", task_id=task_id, rc=error.rc)
            self._spool.remove(entry)
            return True
        if found is Verdict.REFUSED:
            self._log.error(
                f"{entry.kind}_refused", task_id=task_id, rc=error.rc, error=error.message
            )
            self._spool.remove(entry)
            if entry.kind == "result" and entry.body["status"] == "succeeded":
                self._replace(entry, error)
                return False
            return True
        if isinstance(error, Unreachable) and not self._keep_trying:
            self._log.warning(
                f"{entry.kind}_dropped", task_id=task_id, rc="retry_on_disconnect is false"
            )
            self._spool.remove(entry)
            return True
        if isinstance(error, RemoteError):
            self._log.info("delivery_postponed", task_id=task_id, rc=error.rc)
        self._spool.give_back(entry)
        return False

    def _replace(self, entry: Entry, error: RaeError) -> None:
        """A result that control will never take: say so, or the task would wait for its lease."""
        body = {
            "task_id": entry.lease.task_id,
            "attempt": entry.lease.attempt,
            "lease_id": entry.lease.lease_id,
            "status": "failed",
            "error": {
                "code": "E_ARTIFACT",
                "message": f"Control refused the result: {error.message}"[:1000],
            },
        }
        self._spool.put("result", entry.lease, body)
