"""The port of the model runner: a program of another user gets no prompt and is not believed."""

from __future__ import annotations

import os
import socket

from tests.integration.node.harness import MakeRig
from tests.until import until


def test_an_llm_task_goes_back_while_another_user_holds_the_port(make_rig: MakeRig) -> None:
    # Without root there is no other user to be: then it is the agent's own, and is asked.
    words = "does not answer" if os.getuid() else "held by a program of uid 54321"
    port, child = _another_users_listener()
    try:
        rig = make_rig(ollama_url=f"http://127.0.0.1:{port}", llm_models={"greeter": "tiny"})
        rig.control.give("llm", params={"prompt": "hi", "role": "greeter"})
        found = until(lambda: rig.control.of("yield"), "the hand-back")[0]
        assert found[1] == "infrastructure"
        assert words in found[2]
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def _another_users_listener() -> tuple[int, int]:
    """Port and process of a program of uid 54321 that listens on loopback."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setgid(54321)
            os.setuid(54321)
        with socket.create_server(("127.0.0.1", 0)) as door:
            os.write(theirs, str(door.getsockname()[1]).encode())
            while True:
                door.accept()[0].close()
    port = int(os.read(ours, 16))
    os.close(ours)
    os.close(theirs)
    return port, child
