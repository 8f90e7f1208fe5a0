"""A node that comes after a thousand others gets its tasks, too."""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack
from urllib.parse import urlsplit

from rae_protocol import models
from rae_protocol.node_client import NodeClient
from tests.harness import MakeMesh

MANY = 1100  # beyond what select() can name


def test_a_poll_on_a_high_descriptor_gets_its_task_within_its_wait(make_mesh: MakeMesh) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    control = make_mesh()
    address = urlsplit(control.url)
    with ExitStack() as stack:
        token = control.credentials()["admin_token"]
        ask = f"GET /tasks?limit=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        for _ in range(MANY):
            where = (str(address.hostname), int(address.port or 0))
            other = stack.enter_context(socket.create_connection(where))
            other.sendall(ask.encode())  # a stranger's connection would not be kept
            assert other.recv(4096).startswith(b"HTTP/1.1 200")
        enrolled = control.admin.enrol("late")
        node = NodeClient(
            control.url, "late", enrolled.enrolment_secret,
            public_keys=enrolled.control_public_keys,
        )  # fmt: skip
        node.register(models.RegisterRequest(node_id="late", ack=True, slots=["cpu0"]))
        (ref,) = control.rae.submit([{"kind": "cli", "params": {"command": "true"}}])
        task = node.poll(wait_s=10, slots=["cpu0"]).task
        assert task is not None and task.task_id == ref.task_id
