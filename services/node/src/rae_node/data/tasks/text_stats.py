"""Counts lines and words of every input and says which words are the most frequent."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

_WORD = re.compile(r"[^\W\d_]{2,}")


def run(ctx: Any, top: int = 10) -> dict[str, Any]:
    """Analyse the inputs as UTF-8 text. Leaves output/report.json and returns the totals."""
    files = sorted(path for path in ctx.input.rglob("*") if path.is_file())
    totals: Counter[str] = Counter()
    report: dict[str, Any] = {"files": {}}
    for number, path in enumerate(files, start=1):
        text = path.read_text(encoding="utf-8", errors="replace")
        words = Counter(word.lower() for word in _WORD.findall(text))
        totals.update(words)
        name = path.relative_to(ctx.input).as_posix()
        report["files"][name] = {
            "bytes": path.stat().st_size,
            "lines": text.count("\n"),
            "words": sum(words.values()),
            "distinct_words": len(words),
            "most_frequent": _most(words, top),
        }
        ctx.log(f"{name}: {sum(words.values())} words")
        ctx.progress(100 * number / len(files), name)
    report["total"] = {
        "files": len(files),
        "words": sum(totals.values()),
        "distinct_words": len(totals),
        "most_frequent": _most(totals, top),
    }
    text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (ctx.output / "report.json").write_text(text, encoding="utf-8")
    total: dict[str, Any] = report["total"]
    return total


def _most(words: Counter[str], top: int) -> list[list[Any]]:
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    return [[word, count] for word, count in ranked[:top]]
