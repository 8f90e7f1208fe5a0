"""C8: what both logs have in common."""

from __future__ import annotations

import io
import json
import subprocess
import sys

from rae_node.telemetry.log import EventLog
from rae_protocol.log import SECRET_WORDS

# As gunicorn's worker does; the process ends at once, as after a failed commit.
CONTROL = """
import logging, logging.config, sys
from rae_control import log
from rae_protocol.log import facts
logging.config.dictConfig(log.LOGGING)
log.write_in_a_thread()
for word in sys.argv[1:]:
    attrs = {word: "s3cr3t", f"X-{word.title()}-Of": "s3cr3t", "fine": "shown"}
    logging.getLogger("rae_control.any").info("x", extra=facts("n1", "t1", **attrs))
log.end_process(70)
"""


def control_log() -> str:
    command = [sys.executable, "-c", CONTROL, *SECRET_WORDS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (70, "")
    return done.stderr


def node_log(*, as_json: bool) -> str:
    stream = io.StringIO()
    log = EventLog("n1", stream, as_json=as_json)
    for word in SECRET_WORDS:
        attrs = {word: "s3cr3t", f"X-{word.title()}-Of": "s3cr3t", "fine": "shown"}
        log.info("x", task_id="t1", **attrs)
    log.flush()
    return stream.getvalue()


def test_both_logs_hide_each_word_that_speaks_of_a_secret() -> None:
    assert {"password", "credential", "token"} <= set(SECRET_WORDS)
    logs = [[json.loads(line) for line in log.splitlines()]
            for log in (control_log(), node_log(as_json=True))]  # fmt: skip
    wanted = [
        {word: "(hidden)", f"X-{word.title()}-Of": "(hidden)", "fine": "shown"}
        for word in SECRET_WORDS
    ]
    for lines in logs:
        assert [line.pop("attrs") for line in lines] == wanted
        for line in lines:
            assert line.pop("ts")
            assert line == {"level": "info", "node_id": "n1", "task_id": "t1", "event": "x"}


def test_the_lines_for_people_hide_them_too() -> None:
    text = node_log(as_json=False)
    assert "s3cr3t" not in text
    assert text.count("(hidden)") == 2 * len(SECRET_WORDS)
