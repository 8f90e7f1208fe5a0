"""A node from docs/protocol.md alone: SECRET=… hmac_client.py URL NODE CONTROL_PUBLIC_KEY TASKS."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from hmac import digest
from http.client import HTTPConnection, HTTPException
from pathlib import Path

URL, NODE, PUBLIC, TASKS = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
SECRET, token = os.environ["SECRET"].encode(), ""


def call(method, target, promised, **body):
    data = json.dumps(body).encode() if body else b""
    key = digest(SECRET, f"RAE1 session\n{token}".encode(), "sha256") if token else SECRET
    ts, rand = int(time.time()), base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
    raw = f"RAE1\n{method}\n{target}\n{ts}\n{rand}\n{hashlib.sha256(data).hexdigest()}".encode()
    fields = f'keyid="{NODE}", ts="{ts}", nonce="{rand}", sig="{digest(key, raw, "sha256").hex()}"'
    who = f"Bearer {token}" if token else f"RAE-HMAC {fields}"
    headers = {"Authorization": who, "RAE-Signature": fields, "Content-Type": "application/json"}
    with suppress(OSError, HTTPException, ValueError, LookupError, TypeError):
        control = HTTPConnection(URL.partition("://")[2], timeout=40)
        control.request(method, target, data or None, headers)
        said = json.loads((answer := control.getresponse()).read(2**25))
        if answer.status // 100 == 2 and said[promised] == body.get(promised, said[promised]):
            return said
        assert answer.status < 400 or said["rc"] == "retry_signed", f"{answer.status} {said}"
    time.sleep(1)  # not control's answer (protocol.md, "Which answers are control's"): ask again
    return call(method, target, promised, **body)


def opened(envelope):
    body, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    with tempfile.TemporaryDirectory() as box:
        Path(box, "pae").write_bytes(f"DSSEv1 {len(kind)} {kind} {len(body)} ".encode() + body)
        Path(box, "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
        Path(box, "key").write_bytes(b"0*0\5\6\3+ep\3!\0" + base64.urlsafe_b64decode(PUBLIC + "="))
        verify = "openssl pkeyutl -verify -pubin -keyform DER -rawin -inkey key -in pae -sigfile"
        subprocess.run([*verify.split(), "sig"], cwd=box, check=True)
    task = json.loads(body)
    assert task["node_id"] == NODE and task["expires_at"] > time.time(), "not for us, or too late"
    return task


token = call("POST", "/nodes/register", "node_token", node_id=NODE, ack=True)["node_token"]
while TASKS:
    call("POST", "/nodes/heartbeat", "incarnation", node_id=NODE)
    if envelope := call("GET", "/tasks/poll?wait=2&slots=cpu0", "reasons").get("task"):
        task, TASKS = opened(envelope), TASKS - 1
        lease = {name: task[name] for name in ("task_id", "attempt", "lease_id")}
        call("POST", "/tasks/ack", "task_id", **lease)
        done = {**lease, "status": "succeeded", "result": {"params": task["params"]}}
        print(call("POST", "/tasks/result", "task_id", **done)["state"], flush=True)
