"""What a message that a person can meet must be like; the rule of the tests of messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# Words that a way out begins with.
_DO = frozenset(
    [
        "add",
        "adopt",
        "allow",
        "revoke",
        "ask",
        "break",
        "change",
        "check",
        "choose",
        "compare",
        "copy",
        "declare",
        "drop",
        "end",
        "enrol",
        "else",
        "free",
        "give",
        "hash",
        "install",
        "leave",
        "look",
        "make",
        "fix",
        "mount",
        "move",
        "name",
        "pass",
        "post",
        "put",
        "raise",
        "reconcile",
        "remove",
        "rename",
        "requeue",
        "resend",
        "restore",
        "run",
        "say",
        "see",
        "send",
        "set",
        "sign",
        "slow",
        "start",
        "stop",
        "submit",
        "take",
        "try",
        "upload",
        "use",
        "wait",
        "write",
    ]
)
_LEAD = frozenset(["or", "and", "then", "first", "say", "please"])
_BAD = re.compile(r"Traceback|File \"|\{[a-z_.]*\}|%[sdr]|\[Errno|<class|object at 0x|\bNone\b")


def faults(text: str) -> list[str]:
    """What is wrong with a message: nothing, most of the time."""
    found = []
    if not text.strip():
        return ["it is empty"]
    if _BAD.search(text):
        found.append("it shows a program's insides")
    if len(re.findall(r"[.!?](?=\s+[A-Z])", text)) > 2:
        found.append("it has more than three sentences")
    if not _way_out(text):
        found.append("it tells no way out")
    return found


def _way_out(text: str) -> bool:
    if re.search(r"`[^`]+`", text):
        return True
    for clause in re.split(r"[;:.,(]\s+|; |\(", text):
        words = [word.strip("'\"`()").lower() for word in clause.split()]
        while words and words[0] in _LEAD:
            words.pop(0)
        if words and words[0] in _DO:
            return True
    return False


def written(folder: Path, names: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(where, text) of every message that is written out where one of these errors is made.

    What is put in at run time is `X`. A text that ends with that brings the way out along, from
    somebody else's message, and is left out.
    """
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        known = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                text = _text(node.args[-1], known)
                if node.func.id in names and not text.rstrip().endswith("X"):
                    yield f"{file.name}:{node.lineno}", text


def _text(node: ast.expr, known: dict[str, ast.expr]) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, known) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left, known) + _text(node.right, known)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, known) if isinstance(node.value, ast.Name) else "X"
    if isinstance(node, ast.Name) and isinstance(known.get(node.id), ast.JoinedStr | ast.Constant):
        return _text(known[node.id], {})
    return "X"
