"""A node that asks for its inputs over and over keeps no write of others waiting."""

from __future__ import annotations

import os

import gevent

from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import ECHO, Api


def test_a_lease_input_is_looked_up_beside_the_writer(api: Api, mesh: Mesh) -> None:
    api.join("n1")
    api.submit({**ECHO, "inputs": {"f": {"sha256": api.blob(b"bytes")}}})
    ref = api.take("n1")
    path = f"/tasks/{ref['task_id']}/inputs/f?attempt=1&lease_id={ref['lease_id']}"
    until, go_on = os.pipe()
    busy = gevent.spawn(mesh.write, lambda _: os.read(until, 1))
    try:
        with gevent.Timeout(20):
            assert api.node("n1", "GET", path).data == b"bytes"
    finally:
        os.write(go_on, b"x")
        busy.join()
        os.close(until)
        os.close(go_on)
