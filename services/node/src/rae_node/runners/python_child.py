"""Runs one trusted module, in an interpreter of its own (`python3 -I python_child.py CALL`).

Standard library only. Leaves a note, {"value": …} or {"error": {"code", "message"}}, and exits 0
or 1.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Context:
    """What `run(ctx, …)` gets: the task's folders, and a way to tell how far it is."""

    input: Path
    output: Path
    work: Path
    progress_fd: int | None

    def progress(self, pct: float, note: str = "") -> None:
        """How far the task is, 0 to 100, with a line for people."""
        if self.progress_fd is not None:
            line = json.dumps({"pct": pct, "note": note[:500]}) + "\n"
            with contextlib.suppress(OSError):  # no reader: no reason to fail
                os.write(self.progress_fd, line.encode())

    def log(self, text: str) -> None:
        """A line in the task's log."""
        print(text, flush=True)


def execute(call: dict[str, Any], progress_fd: int | None) -> dict[str, Any]:
    """Import, bind, run. Returns the note."""
    try:
        spec = importlib.util.spec_from_file_location("rae_task", call["module"])
        if spec is None or spec.loader is None:
            return _error("E_INVALID", f"{call['module']} cannot be loaded")
        module = importlib.util.module_from_spec(spec)
        sys.modules["rae_task"] = module
        spec.loader.exec_module(module)
        params = dict(call["params"])
        if not callable(getattr(module, "run", None)):
            return _error("E_INVALID", "The task has no run(); add one to its file on the node")
        signature = inspect.signature(module.run)
        if "ctx" in params:
            return _error("E_INVALID", "params: 'ctx' is given by the node")
        if "ctx" in signature.parameters:
            params["ctx"] = Context(
                Path(call["input"]), Path(call["output"]), Path(call["work"]), progress_fd
            )
        try:
            signature.bind(**params)
        except TypeError as error:
            shown = str(signature)
            return _error("E_INVALID", f"params do not fit run{shown}: {error}")
        return _returned(module.run(**params))
    except MemoryError:
        return _error("E_OOM", "The task ran out of memory")
    except BaseException:  # whatever the task raises is the task's failure, SystemExit too
        text = traceback.format_exc()
        sys.stderr.write(text)
        return _error("E_EXIT", "\n".join(text.strip().splitlines()[-8:]))


def _returned(value: Any) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        text = f"The value that run() returned is no JSON: {error}"
        sys.stderr.write(text + "\n")
        return _error("E_EXIT", text)
    return {"value": value}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def main() -> int:
    """Exit code 0 when run returned, 1 when not."""
    call = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    number = os.environ.pop("RAE_PROGRESS_FD", None)
    fd = int(number) if number is not None else None
    if fd is not None:
        os.set_inheritable(fd, False)
    note = execute(call, fd)
    with Path(call["note"]).open("w", encoding="utf-8") as handle:
        json.dump(note, handle)
    sys.stdout.flush()
    return 0 if "value" in note else 1


if __name__ == "__main__":
    sys.exit(main())
