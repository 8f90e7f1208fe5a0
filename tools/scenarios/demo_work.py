"""What the demo lets the mesh do, and how the same is done here to compare the bytes."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests

from rae_node.data.tasks import text_stats
from tools.processes import MeshError

LICENCES = Path("/usr/share/common-licenses")
PROJECT = Path(__file__).resolve().parents[2]
OLLAMAS = ("http://127.0.0.1:11435", "http://127.0.0.1:11434")
SLOW_S = 4.0
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """A task and what its artifact must be, byte for byte (None: nothing to compare)."""

    body: Body
    artifact: str | None = None
    expected: Callable[[], bytes] | None = None

    @property
    def task_id(self) -> str:
        """Its id, chosen here so that later tasks can name it."""
        return str(self.body["task_id"])


def pick_files(count: int) -> dict[str, Path]:
    """Real files by the name they get as inputs: licence texts first, then our own sources."""
    licences = [path for path in sorted(LICENCES.glob("*")) if not path.is_symlink()]
    sources = sorted(PROJECT.glob("services/*/src/**/*.py"), key=lambda path: -path.stat().st_size)
    picked = [*licences[: count * 2 // 3], *sources][:count]
    return {f"{number:02}-{path.name}": path for number, path in enumerate(picked)}


def run_here(content: dict[str, bytes], command: Sequence[str], leaves: str | None) -> bytes:
    """Run the same program on this machine: its stdout, or the file that it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in content.items():
            (Path(folder) / name).write_bytes(data)
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        return done.stdout if leaves is None else (Path(folder) / leaves).read_bytes()


@dataclass(slots=True)
class Plan:
    """Collects tasks over uploaded files and over artifacts of each other."""

    files: dict[str, Path]
    blobs: dict[str, str]
    work: list[Work] = field(default_factory=list)

    def cli(
        self, task_id: str, command: Sequence[str], sources: dict[str, str | Work],
        leaves: str | None = None,
    ) -> Work:  # fmt: skip
        """Add a command over inputs: names of files, or earlier work. Without `leaves` its stdout
        is the artifact."""
        artifact = leaves or "stdout.txt"
        body = {
            "task_id": task_id,
            "kind": "cli",
            "params": {"command": command[0], "args": list(command[1:])},
            "inputs": {name: self._input(source) for name, source in sources.items()},
            "artifacts": [
                {
                    "name": artifact,
                    "type": "application/octet-stream" if leaves else "text/plain",
                }
            ],
            "timeout_s": 120,
        }

        @cache
        def expected() -> bytes:
            content = {name: self._content(source) for name, source in sources.items()}
            return run_here(content, command, leaves)

        self.work.append(Work(body, artifact, expected))
        return self.work[-1]

    def _input(self, source: str | Work) -> Body:
        if isinstance(source, Work):
            return {"from_task": source.task_id, "artifact": source.artifact}
        return {"sha256": self.blobs[source]}

    def _content(self, source: str | Work) -> bytes:
        if isinstance(source, str):
            return self.files[source].read_bytes()
        if source.expected is None:
            raise MeshError(f"{source.task_id} has nothing to compare with")
        return source.expected()


def quick_work(files: dict[str, Path], blobs: dict[str, str]) -> list[Work]:
    """Hash all files, compress half, analyse all in Python; and a graph: sort, count and compress
    some, join what was counted, measure it."""
    plan = Plan(files, blobs)
    for name in files:
        plan.cli(f"hash-{name[:2]}", ["sha256sum", name], {name: name})
    for name in list(files)[::2]:
        plan.cli(f"gzip-{name[:2]}", ["gzip", "-9nk", name], {name: name}, f"{name}.gz")
    counted: dict[str, str | Work] = {}
    for name in list(files)[:6]:
        key = name[:2]
        ordered = plan.cli(f"sort-{key}", ["sort", name], {name: name})
        counts = plan.cli(f"count-{key}", ["uniq", "-c", "sorted"], {"sorted": ordered})
        plan.cli(f"xz-{key}", ["xz", "-9k", "counts"], {"counts": counts}, "counts.xz")
        counted[f"counts-{key}"] = counts
    joined = plan.cli("join", ["cat", *counted], counted)
    plan.cli("measure", ["wc", "all"], {"all": joined})
    body = {
        "task_id": "words",
        "kind": "python",
        "params": {"task": "text_stats", "params": {"top": 20}},
        "inputs": {name: {"sha256": digest} for name, digest in blobs.items()},
        "artifacts": [{"name": "report.json", "type": "application/json"}],
    }
    return [*plan.work, Work(body, "report.json", lambda: words_here(files))]


def words_here(files: dict[str, Path]) -> bytes:
    """The report of the node's own `text_stats`, called in this process."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, output = Path(folder, "input"), Path(folder, "output")
        inputs.mkdir()
        output.mkdir()
        for name, path in files.items():
            (inputs / name).write_bytes(path.read_bytes())
        context = SimpleNamespace(
            input=inputs, output=output, log=lambda text: None, progress=lambda pct, note: None
        )
        text_stats.run(context, top=20)
        return (output / "report.json").read_bytes()


def slow_work(prefix: str, count: int) -> list[Work]:
    """Tasks that take a few seconds, so that there is something to interrupt."""
    names = [f"{prefix}-{number}" for number in range(count)]
    return [
        Work(
            {
                "task_id": name, "kind": "python", "priority": 9,
                "params": {"task": "example", "params": {"name": name, "seconds": SLOW_S}},
                "artifacts": [{"name": "greeting.txt", "type": "text/plain"}],
            },
            "greeting.txt", f"Hello, {name}!\n".encode,
        )
        for name in names
    ]  # fmt: skip


def find_ollama() -> tuple[str, str] | None:
    """An Ollama on loopback with its smallest model, None where there is none."""
    for url in OLLAMAS:
        try:
            answer = requests.get(f"{url}/api/tags", timeout=1.0)
            found = [m for m in answer.json()["models"] if not m["name"].endswith("cloud")]
            if found:
                return url, str(min(found, key=lambda model: model["size"])["name"])
        except (requests.RequestException, ValueError, KeyError, TypeError):
            continue
    return None


def llm_work(model: str) -> list[Work]:
    """Two questions; what a model answers is nothing to compare."""
    questions = ("Say hello in one word.", "What is 2 + 2? Answer with the number.")
    return [
        Work(
            {
                "task_id": f"llm-{number}", "kind": "llm",
                "params": {"model": model, "prompt": text, "max_tokens": 32}, "timeout_s": 100,
            }
        )
        for number, text in enumerate(questions)
    ]  # fmt: skip
