"""What grows with the ledger: how long others wait while one submitter works on very many tasks.

Each ledger is filled by SQL. Of its tasks a tenth is queued in one lane, a tenth waits for one
task, a tenth for a day in the far future; the others have ended.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event

import apsw
import requests

from tools.bench.load import TRUE, Wire
from tools.bench.measure import CONTROL, generator, in_ms, in_redis, percentile
from tools.bench.report import Report, Run
from tools.devmesh import DevMesh, wait_until
from tools.ledger_rows import Rows, fill
from tools.processes import MeshError
from tools.scenarios.load import beside

SETTINGS: Mapping[str, object] = {
    **CONTROL, "max_queued": 10_000_000, "max_queued_bytes": 2**40, "retention_every_s": 86400.0,
}  # fmt: skip
NAMES = ("load", "few", "other")
FAR = 7e9
# What somebody else may wait, and by how much more in the largest ledger than in the smallest one;
# differences of less than `NOISE_MS` are the machine's.
MOST_MS, MOST_GROWTH, NOISE_MS = 500, 2.0, 50
LONG_S = 900.0
# What a case takes that has no end of its own.
SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Ledger:
    """A control whose ledger is full, and the tokens of its submitters."""

    mesh: DevMesh
    rows: int
    tokens: Mapping[str, str]

    @property
    def part(self) -> int:
        """How many tasks are queued, how many wait for one task, and how many for a day."""
        return self.rows // 10

    def wire(self, who: str = "load") -> Wire:
        """A connection of this submitter's."""
        return Wire(self.mesh.url, self.tokens[who])

    def sql(self, text: str) -> None:
        """Change the ledger beside control."""
        with closing(apsw.Connection(str(self.mesh.data / "ledger.db"))) as db:
            db.set_busy_timeout(60_000)
            db.execute(text)

    def count(self, state: str) -> int:
        """How many tasks control counts in a state."""
        token = self.mesh.credentials()["admin_token"]
        headers = {"Authorization": f"Bearer {token}"}
        text = requests.get(f"{self.mesh.url}/metrics", headers=headers, timeout=60).text
        head = f'rae_tasks{{state="{state}"}} '
        return next(
            (int(float(line[len(head) :])) for line in text.splitlines() if line.startswith(head)),
            0,
        )


@contextmanager
def full(rows: int) -> Iterator[Ledger]:
    """Control with a ledger of so many tasks."""
    with DevMesh((), control=SETTINGS) as mesh:
        tokens = {name: str(mesh.admin.add_token(name, "submit").token) for name in NAMES}
        mesh.control.stop()
        ledger, tenth = Ledger(mesh, rows, tokens), rows // 10
        waits = partial(Rows, submitter="load", state="waiting")
        fill(
            mesh.data,
            Rows("done", rows - 3 * tenth, "load"),
            Rows("few", 1, "few"),
            Rows("queued", tenth, "load", state="queued"),
            waits("root", 1, not_before=FAR),
            waits("needs", tenth, needs="root-1"),
            waits("due", tenth, not_before=FAR),
        )
        mesh.start_control(300)
        wait_until(lambda: ledger.count("queued") == tenth, 60, "control has read its ledger")
        yield ledger


def started(ledger: Ledger) -> None:
    """Control has just begun and writes the queue anew."""
    wait_until(lambda: in_redis(ledger.mesh) >= ledger.part, LONG_S, "all are queued", every_s=0.5)


def quiet(_ledger: Ledger) -> None:
    """Nothing else happens but what control does by itself."""
    time.sleep(SECONDS)


def lists(ledger: Ledger) -> None:
    """Lists by kind, node and label that find nothing."""
    _ask(ledger, [f"/tasks?{name}=none=x" for name in ("kind", "node", "label")], "load")


def one_event(ledger: Ledger) -> None:
    """The events of a submitter who has one task."""
    _ask(ledger, ["/events?after=0"], "few")


def _ask(ledger: Ledger, paths: Sequence[str], who: str) -> None:
    end = time.monotonic() + SECONDS

    def ask(wire: Wire) -> None:
        while time.monotonic() < end:
            for path in paths:
                wire.call("GET", path)

    with ThreadPoolExecutor(8) as pool:
        for asking in [pool.submit(ask, ledger.wire(who)) for _ in range(8)]:
            asking.result()


def watchers(ledger: Ledger) -> None:
    """A hundred watchers of `/events` without news, and another submitter's tasks."""
    after = ledger.wire("few").call("GET", "/events?after=0")["next"]
    with ThreadPoolExecutor(100) as pool:
        waiting = [
            pool.submit(ledger.wire("few").call, "GET", f"/events?after={after}&wait={SECONDS}")
            for _ in range(100)
        ]
        _submit_and_cancel(ledger, lambda: all(one.done() for one in waiting))
        for one in waiting:
            one.result()


def _submit_and_cancel(ledger: Ledger, over: Callable[[], bool]) -> None:
    rae = ledger.wire()
    while not over():
        task_id = rae.call("POST", "/tasks", TRUE)["tasks"][0]["task_id"]
        rae.call("POST", f"/tasks/{task_id}/cancel", {})


def submits(ledger: Ledger) -> None:
    """A hundred submits of a thousand tasks."""
    rae = ledger.wire()
    for _ in range(100):
        rae.call("POST", "/tasks", {"tasks": [TRUE] * 1000})


def checked(ledger: Ledger) -> None:
    """`rae-control check --deep`, while tasks are submitted and cancelled."""
    command = [sys.executable, "-m", "rae_control.cli.rae_control", "check", "--deep", "--data"]
    with subprocess.Popen(
        [*command, str(ledger.mesh.data)], stdout=subprocess.PIPE, text=True
    ) as checking:
        _submit_and_cancel(ledger, lambda: checking.poll() is not None)
        if checking.returncode:
            raise MeshError(f"the check found {checking.stdout and checking.stdout.read()[:500]}")


def dependents(ledger: Ledger) -> None:
    """The end of a task that a tenth of the ledger waits for."""
    ledger.wire().call("POST", "/tasks/root-1/cancel", {})
    wait_until(lambda: ledger.count("failed") >= ledger.part, LONG_S, "all have ended", every_s=0.5)


def expiry(ledger: Ledger) -> None:
    """All tasks of a full lane expire."""
    ledger.sql("UPDATE tasks SET expires_at = 1 WHERE state = 'queued' AND task_id GLOB 'queued-*'")
    wait_until(lambda: ledger.count("expired") >= ledger.part, LONG_S, "all expire", every_s=0.5)


CASES: Mapping[str, Callable[[Ledger], None]] = {
    "control after a start, until its queue is complete": started,
    "nothing, beside the reaper's search for what is due": quiet,
    "lists by kind, node or label, without a match": lists,
    "reads of the events of one own task": one_event,
    "100 quiet watchers of events, beside submits": watchers,
    "`check --deep`, beside submits": checked,
    "a tenth of all tasks released": dependents,
    "a lane with a tenth of all tasks expires": expiry,
    # Last: the ledger is larger by all of them afterwards.
    "100 submits of 1,000 tasks": submits,
}


@dataclass(frozen=True, slots=True)
class Waits:
    """What somebody else waited meanwhile, in ms; the log's size in MiB; the case's seconds."""

    submit: list[float]
    heartbeat: list[float]
    log_mib: float
    seconds: float

    @property
    def p99(self) -> tuple[float, float]:
        """Of submits and of heartbeats."""
        return percentile(self.submit, 99), percentile(self.heartbeat, 99)


def measured(ledger: Ledger, nodes: Mapping[str, str], case: Callable[[Ledger], None]) -> Waits:
    """A case, and what somebody else waits meanwhile. Raises MeshError."""
    ledger.sql("PRAGMA wal_checkpoint(truncate)")
    log, sizes = ledger.mesh.data / "ledger.db-wal", [0]

    def watch(over: Event) -> None:
        while not over.wait(0.05):
            sizes[0] = max(sizes[0], log.stat().st_size)

    token = ledger.tokens["other"]
    with beside(watch), generator("beside", ledger.mesh, nodes, token=token) as other:
        other.line()  # however long its start takes here, it is ready
        time.sleep(1)  # it measures before the case begins, and goes on after its end
        began = time.monotonic()
        case(ledger)
        seconds = time.monotonic() - began
        found = other.finish()
    return Waits(found["submit"], found["heartbeat"], sizes[0] / 2**20, seconds)


def grows(report: Report, run: Run) -> None:
    """All cases in ledgers of these sizes, with goals."""
    sizes = (1000, 10_000) if run.quick else run.rows
    found: dict[str, dict[int, Waits]] = {name: {} for name in CASES}
    for rows in sizes:
        report.section(
            f"What somebody else waits beside one submitter's work, {rows:,} tasks in the ledger",
            "", "submit, p50", "p99", "longest", "heartbeat, p50", "p99", "longest",
            "write-ahead log", "took",
        )  # fmt: skip
        with full(rows) as ledger:
            nodes = {"n": ledger.mesh.admin.enrol("n").enrolment_secret}
            for name, case in CASES.items():
                waits = found[name][rows] = measured(ledger, nodes, case)
                cells = [cell for kind in (waits.submit, waits.heartbeat)
                         for cell in (*in_ms(kind, 0), f"{max(kind):.0f} ms")]  # fmt: skip
                report.row(name, *cells, f"{waits.log_mib:.0f} MiB", f"{waits.seconds:.1f} s")
    report.goals("Goals of what grows: p99, submit / heartbeat")
    for name, by_rows in found.items():
        pairs = list(zip(by_rows[sizes[0]].p99, by_rows[sizes[-1]].p99, strict=True))
        report.verdict(
            name, " / ".join(f"{before:.0f} → {after:.0f} ms" for before, after in pairs),
            f"≤ {MOST_MS} ms, ≤ {MOST_GROWTH:g} x",
            met=all(after <= MOST_MS and after <= max(NOISE_MS, MOST_GROWTH * before)
                    for before, after in pairs),
        )  # fmt: skip
