"""Tasks from ack to result: runners, limits, inputs, artifacts, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rae_node.config.layout import Layout
from tests.integration.node.harness import SLEEP, MakeRig, listing
from tests.until import until


def test_a_cli_task_is_acked_run_reported_and_wiped(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig()
    result, _ = rig.run(params={"command": "echo", "args": ["hello", "world"]})
    assert result.status == "succeeded"
    assert result.result == {
        "exit_code": 0, "stdout": "hello world\n", "stderr": "", "truncated": False,
    }  # fmt: skip
    verbs = [verb for verb, _ in rig.control.calls if verb in {"ack", "log"}]
    assert verbs == ["ack", "log"]
    assert rig.control.of("log") == [(0, b"hello world\n")]
    until(lambda: not listing(layout.workdir) and not listing(layout.spool), "all wiped")


def test_inputs_are_copied_into_the_workspace_and_artifacts_come_back(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.blobs["sub/b.txt"] = b"from control"
    result, files = rig.run(
        params={"command": "sha256sum", "args": ["a.txt", "sub/b.txt"]},
        inputs={"a.txt": {"inline": "aGk=", "encoding": "base64"}, "sub/b.txt": {}},
        artifacts=[{"name": "sub/b.txt"}, {"name": "a.txt"}],
    )
    assert result.status == "succeeded" and "sub/b.txt" in result.result["stdout"]
    assert files == {"a.txt": b"hi", "sub/b.txt": b"from control"}
    assert [meta.size for meta in result.artifacts] == [12, 2]


def test_stdout_stands_in_for_a_missing_sole_text_artifact(make_rig: MakeRig) -> None:
    """Contract: C10."""
    result, files = make_rig().run(
        params={"command": "echo", "args": ["hello", "world"]},
        artifacts=[{"name": "output.txt", "type": "text/plain", "max_mb": 1}],
    )
    assert result.status == "succeeded" and files == {"output.txt": b"hello world\n"}


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"params": {"command": "false"}}, "E_EXIT", "Exit code 1"),
        ({"params": {"command": "rm", "args": ["x"]}}, "E_DENY", "allow-list"),
        ({"params": {"command": "cat", "args": ["../x"]}}, "E_DENY", "leaves the workspace"),
        ({"params": {"cmd": "x"}}, "E_INVALID", "params"),
        ({"params": {"command": "cat", "args": ["nope"]}}, "E_EXIT", "No such file"),
        ({"params": SLEEP, "timeout_s": 0.1}, "E_TIMEOUT", "timeout_s of the task"),
        ({"artifacts": [{"name": "x.bin"}]}, "E_ARTIFACT", "neither in output/ nor in work/"),
        ({"inputs": {"a": {"inline": "x", "sha256": "0" * 64}}}, "E_INPUT", "SHA-256"),
        ({"inputs": {"a": {"url": "http://127.0.0.1:1/a"}}}, "E_DENY", "input_url_hosts"),
        ({"kind": "unknown"}, "E_INVALID", "runs no tasks of kind"),
    ],
)
def test_each_failure_has_its_code_and_a_sentence(
    make_rig: MakeRig, more: dict[str, Any], code: str, words: str
) -> None:
    result, _ = make_rig().run(**more)
    assert result.status == "failed" and result.error is not None
    assert result.error.code == code and words in result.error.message


def test_the_smallest_time_limit_wins_and_is_named(make_rig: MakeRig) -> None:
    """Contract: Z5."""
    rig = make_rig(runtime={"execution": {"task_timeout_minutes": 0.002}})
    result, _ = rig.run(params=SLEEP)
    assert result.error is not None and "task_timeout_minutes" in result.error.message


PYTHON = {
    "value": ("def run(a, b=2): return {'sum': a + b}", {"a": 1}, None, {"sum": 3}),
    "bind": ("def run(a): return a", {"z": 1}, "E_INVALID", "'z' is not known to run(a); remove"),
    "fail": ("def run(): raise ValueError('odd')", {}, "E_EXIT", "ValueError: odd"),
    "oom": ("def run(): raise MemoryError", {}, "E_OOM", "memory"),
    "exit": ("import os\ndef run(): os._exit(0)", {}, "E_EXIT", "without returning"),
    "sysexit": ("def run(): raise SystemExit(0)", {}, "E_EXIT", "SystemExit"),
    "nan": ("def run(): return float('nan')", {}, "E_EXIT",
            "The value that run() returned is no JSON: Out of range float"),
    "object": ("def run(): return object()", {}, "E_EXIT",
               "The value that run() returned is no JSON: Object of type object"),
    "handback": ("import json, os\ndef run(ctx):\n"
                 " note = {'error': {'code': 'HANDBACK', 'message': 'not my fault'}}\n"
                 " (ctx.work.parent/'logs'/'return.json').write_text(json.dumps(note))\n"
                 " os._exit(1)", {}, "E_EXIT", "not my fault"),
    "exit3": ("import os\ndef run(): os._exit(3)", {}, "E_EXIT",
              "The program ended with exit code 3 without returning a value; it wrote no output"),
    "deep": ("def run():\n x=[]\n for _ in range(40): x=[x]\n return x", {}, "E_EXIT", "travel"),
    "segv": ("import os\ndef run(): os.kill(os.getpid(), 11)", {}, "E_EXIT", "SIGSEGV"),
    "big": ("def run(): return 'x' * (5 << 20)", {}, "E_ARTIFACT", "use an artifact"),
    "flood": ("import os\ndef run():\n while 1: os.write(1, b'x'*65536)", {}, "E_ARTIFACT", "more"),
    "file": ("def run():\n open('f','wb').truncate(2<<30)", {}, "E_EXIT", "File too large"),
}  # fmt: skip


@pytest.mark.parametrize("name", PYTHON)
def test_python_tasks_return_or_say_what_went_wrong(
    make_rig: MakeRig, tmp_path: Path, name: str
) -> None:
    source, params, code, wanted = PYTHON[name]
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / f"{name}.py").write_text(source)
    result, _ = make_rig(tasks=[folder]).run("python", params={"task": name, "params": params})
    if code is None:
        assert (result.status, result.result) == ("succeeded", wanted)
    else:
        assert result.error is not None and result.error.code == code
        assert wanted in result.error.message


def test_shipped_python_tasks_work_and_tell_their_progress(make_rig: MakeRig) -> None:
    rig = make_rig()
    result, files = rig.run(
        "python",
        params={"task": "tasks.example:run", "params": {"name": "RAE", "seconds": 0.4}},
        artifacts=[{"name": "greeting.txt"}],
    )
    assert result.result == {"greeting": "Hello, RAE!"}
    assert files == {"greeting.txt": b"Hello, RAE!\n"}
    assert rig.control.of("progress")
    result, files = rig.run(
        "python",
        params={"task": "text_stats", "params": {"top": 1}},
        inputs={"a.txt": {"inline": "to be or not to be"}, "d/b.txt": {"inline": "be\n"}},
        artifacts=[{"name": "report.json"}],
    )
    assert result.result["most_frequent"] == [["be", 3]]
    assert json.loads(files["report.json"])["files"]["d/b.txt"]["lines"] == 1


def test_a_task_file_that_others_can_write_is_untrusted(make_rig: MakeRig, tmp_path: Path) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "t.py").write_text("def run(): return 1")
    (folder / "t.py").chmod(0o666)
    result, _ = make_rig(tasks=[folder]).run("python", params={"task": "t"})
    assert result.error is not None and result.error.code == "E_DENY"
    assert "chmod go-w" in result.error.message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os\ndef run(ctx): os.symlink('/etc/passwd', ctx.output / 'a')", "link"),
        ("import os\ndef run(ctx): os.symlink('/etc', ctx.output / 'd'); ", "link"),
        ("import os\ndef run(ctx): os.mkfifo(ctx.output / 'a')", "plain file"),
        ("import os\ndef run(ctx):\n (ctx.work/'x').write_text('x')\n"
         " os.link(ctx.work/'x', ctx.output/'a')", "one name"),
        ("def run(ctx): (ctx.output/'a').write_bytes(b'x' * 2000000)", "larger than its max_mb"),
    ],
)  # fmt: skip
def test_artifacts_are_plain_files_of_the_workspace(
    make_rig: MakeRig, tmp_path: Path, source: str, words: str
) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "t.py").write_text(source)
    name = "d/passwd" if "'/etc'" in source else "a"
    result, _ = make_rig(tasks=[folder]).run(
        "python", params={"task": "t"}, artifacts=[{"name": name, "max_mb": 1}]
    )
    assert result.error is not None and result.error.code == "E_ARTIFACT"
    assert words in result.error.message


def test_progress_that_cannot_be_encoded_does_not_end_the_task(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "t.py").write_text(
        "import time\ndef run(ctx): ctx.progress(1, '\\udcff'); time.sleep(0.3); return 1"
    )
    result, _ = make_rig(tasks=[folder]).run("python", params={"task": "t"})
    assert (result.status, result.result) == ("succeeded", 1)


def test_a_message_with_half_a_surrogate_pair_is_delivered(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "t.py").write_text("def run(): raise ValueError('\\udcff')")
    result, _ = make_rig(tasks=[folder]).run("python", params={"task": "t"})
    assert result.error is not None and "ValueError" in result.error.message
