"""Control is up, the node cannot reach it: the node stops in time, control gives the work away."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tests.harness import MakeMesh
from tests.integration.harness import state
from tests.integration.stamps import Stamps, started
from tests.until import until
from tools.devmesh import Node


class Cable:
    """A TCP relay on loopback that can be pulled out: bytes stop, connections stay open."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._in = threading.Event()
        self._in.set()
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def pull(self) -> None:
        self._in.clear()

    def plug(self) -> None:
        self._in.set()

    def close(self) -> None:
        self._closed = True
        self.plug()
        for item in (self._listener, *self._open):
            with suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                here, _ = self._listener.accept()
                there = socket.create_connection(self._target)
            except OSError:
                return
            self._open += [here, there]
            for pair in ((here, there), (there, here)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                self._in.wait()
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Path]:
    """Another data folder, whose credentials lead through the cable."""
    folder = tmp_path / "away"
    folder.mkdir()
    yield folder


def test_a_cut_off_node_stops_before_its_task_starts_elsewhere(
    make_mesh: MakeMesh, tmp_path: Path, away: Path
) -> None:
    stamps = Stamps(tmp_path)
    mesh = make_mesh("near", node={"task_paths": [str(stamps.tasks)]})
    mesh.admin.node_verb("near", "drain", "the far node goes first")
    with ExitStack() as stack:
        cable = stack.enter_context(closing(Cable(int(mesh.url.rpartition(":")[2]))))
        far = mesh.add_node("far", {"task_paths": [str(stamps.tasks)]})
        far.stop()
        credentials = mesh.credentials() | {"url": f"http://127.0.0.1:{cable.port}"}
        (away / "credentials.json").write_text(json.dumps(credentials))
        command = [str(away) if part == str(mesh.data) else part for part in far.command]
        node = Node("far", command, away / "far.out", far.spawner, data=away)
        node.start()
        stack.callback(node.stop)
        task_id = mesh.rae.submit([stamps.body(60)])[0].task_id
        started(stamps, task_id)
        cable.pull()
        mesh.admin.node_verb("near", "resume")
        started(stamps, task_id, 2)
        assert mesh.admin.task(task_id).history[1].node_id == "near"
        stamps.alive_alone(task_id)
        until(lambda: mesh.admin.node("far").state == "offline", "far is offline", 20)
        cable.plug()
        until(lambda: mesh.admin.node("far").state == "online", "far came back", 30)
        assert state(mesh, task_id) == "running"
        assert stamps.ended(task_id) == []
        # Alone, also after the cut-off node had a chance to go on with what it had.
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        until(lambda: stamps.lived(task_id)[2][1] > now + 0.5, "the second attempt lives", 5)
        stamps.alive_alone(task_id)
        mesh.rae.cancel(task_id)
