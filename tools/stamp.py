"""A task for the nodes of chaos: writes down when it lives, outside its workspace.

Each stamp is one write with a newline before and after: a process that is killed in the middle of
one, or read then, spoils no line but its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any


def run(ctx: Any, stamps: str, seconds: float, fails: int = 0, kib: int = 0) -> dict[str, object]:
    """Stamp start, life and end; the first `fails` attempts raise instead of ending well.

    `kib` of random bytes become the artifact `bytes`.
    """
    task, attempt = os.environ["RAE_TASK_ID"], int(os.environ["RAE_ATTEMPT"])
    run_id = os.urandom(4).hex()  # a restored ledger counts attempts from the backup on
    file = os.open(stamps, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def stamp(what: str) -> float:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        line = {"at": now, "task": task, "attempt": attempt, "run": run_id, "what": what}
        os.write(file, f"\n{json.dumps(line)}\n".encode())
        return now

    end = stamp("start") + seconds
    while stamp("alive") < end:
        time.sleep(0.02)
    stamp("end")
    if attempt <= fails:
        raise RuntimeError(f"attempt {attempt} fails on purpose")
    if not kib:
        return {"attempt": attempt}
    content = os.urandom(kib * 1024)
    (ctx.output / "bytes").write_bytes(content)
    return {"attempt": attempt, "sha256": hashlib.sha256(content).hexdigest()}


def stamps_in(file: Path) -> list[dict[str, Any]]:
    """All whole stamps of a file, oldest first; a torn one is none."""
    found: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
