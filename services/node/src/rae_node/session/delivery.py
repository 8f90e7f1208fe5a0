"""Gets the spool's entries to control: at once by the task's own thread, else by a patient one."""

from __future__ import annotations

import threading

from rae_node.context import AgentContext
from rae_node.errors import Verdict, verdict
from rae_node.session.backoff import Pauses
from rae_node.session.session import Link
from rae_node.session.spool import Entry, Spool
from rae_protocol.errors import RaeError, Unreachable


class Delivery:
    """Delivers until control answers."""

    def __init__(self, context: AgentContext, spool: Spool, link: Link) -> None:
        self._client, self._log, self._spool, self._link = context.client, context.log, spool, link
        self._context = context
        self._pauses = Pauses(context.settings.retry_base_sec, context.settings.spool_retry_cap_sec)
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

    def deliver(self, lease_id: str) -> None:
        """One try for this lease now; what is not done with then is retried later."""
        entry = self._spool.take(lease_id)
        if entry is not None and not self._try(entry):
            self._wake.set()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            entry = self._spool.take()
            if entry is None:
                self._wake.wait()
            elif self._try(entry):
                self._pauses.failures = 0
            else:
                self._wake.wait(self._pauses.next())

    def _try(self, entry: Entry) -> bool:
        """Whether the entry is done with."""
        task_id = entry.lease.task_id
        if not self._link.ready.is_set():  # registering names the lease first, then wakes us
            self._spool.give_back(entry)
            return False
        try:
            self._link.call(lambda: self._send(entry))
        except RaeError as error:
            return self._settle(entry, error)
        except Exception as error:  # the loop's one catch; the next try comes after a pause
            self._log.error("delivery_failed", task_id=task_id, error=repr(error))
            self._spool.give_back(entry)
            return False
        self._spool.remove(entry)
        self._log.info(f"{entry.kind}_delivered", task_id=task_id)
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
        found, attrs = verdict(error), {"task_id": entry.lease.task_id, "rc": error.rc}
        refused = found is Verdict.REFUSED and error.status != 404
        gives_up = (
            isinstance(error, Unreachable)
            and not self._context.runtime.execution.retry_on_disconnect
        )
        if refused:
            self._log.error(f"{entry.kind}_refused", error=error.message, **attrs)
        elif found in {Verdict.STALE, Verdict.REFUSED} or gives_up:
            why = "retry_on_disconnect is false" if gives_up else error.message
            self._log.warning(f"{entry.kind}_dropped", why=why, **attrs)
        else:
            # Heartbeats may be answered all the while: then nothing else says what is wrong.
            self._log.info("delivery_postponed", error=error.message, **attrs)
            self._spool.give_back(entry)
            return False
        self._spool.remove(entry)
        if refused and entry.kind == "result" and entry.body["status"] == "succeeded":
            # Control will never take it: say so, or the task would wait for its lease.
            text = f"Control refused the result: {error.message}"[:1000]
            failed = {"status": "failed", "error": {"code": "E_ARTIFACT", "message": text}}
            try:
                self._spool.put("result", entry.lease, {**entry.lease.model_dump(), **failed})
            except OSError as problem:  # not reported, the lease runs out at control
                self._log.error("spool_not_written", problem=str(problem), **attrs)
                return True
            return False
        return True
