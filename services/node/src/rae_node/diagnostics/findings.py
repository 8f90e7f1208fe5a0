"""What doctor and report find: one line each, and the lines as a text or for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. A FAIL says what and why, and how to fix it."""

    name: str
    state: Literal["ok", "FAIL", "note"]
    what: str
    fix: str = ""


def good(name: str, what: str = "") -> Finding:
    """It holds."""
    return Finding(name, "ok", what)


def note(name: str, what: str) -> Finding:
    """Worth knowing; nothing has to be done."""
    return Finding(name, "note", what)


def bad(name: str, what: str, fix: str = "") -> Finding:
    """It keeps the node from working. Without `fix`, `what` says how to fix it, too."""
    return Finding(name, "FAIL", what, fix)


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing failed."""
    return all(one.state != "FAIL" for one in findings)


def rendered(findings: Sequence[Finding]) -> str:
    """For people."""
    lines = []
    for one in findings:
        lines.append(f"{one.state:4}  {one.name:22} {one.what}")
        lines += [f"      fix: {one.fix}"] if one.fix else []
    failed = sum(one.state == "FAIL" for one in findings)
    end = f"{failed} of {len(findings)} failed." if failed else "Nothing failed."
    return "\n".join([*lines, "", end])


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """For programs."""
    return {"ok": healthy(findings), "checks": [asdict(one) for one in findings]}
