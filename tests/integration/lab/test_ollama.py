"""The archive and the model that roles install: both work on a host that has no way out."""

from __future__ import annotations

import hashlib
import json

from tests.lab import Host, Lab, ollama
from tests.until import until

API = "http://127.0.0.1:11434/api"


def ask(host: Host, path: str, body: dict[str, object]) -> dict[str, object]:
    command = ["curl", "--silent", "--show-error", "--fail-with-body", f"{API}/{path}", "-d", "@-"]
    said = host.run([*command], stdin=json.dumps({**body, "stream": False})).stdout
    answer: dict[str, object] = json.loads(said)
    return answer


def test_ollama_answers_on_a_host_with_the_tiny_model(lab: Lab, pair: tuple[Host, Host]) -> None:
    host, _ = pair
    built = ollama.build(print)
    assert hashlib.sha256(built.archive.read_bytes()).hexdigest() == built.sha256
    host.copy(built.archive.parent, "/run/lab/ollama")
    host.run(["tar", "--extract", "--directory=/usr/local",
              f"--file=/run/lab/ollama/{built.archive.name}"])  # fmt: skip
    host.run(["systemd-run", "--quiet", "--unit=ollama-test", "--setenv=HOME=/run/lab",
              "/usr/local/bin/ollama", "serve"])  # fmt: skip
    try:
        version = ["curl", "--silent", f"{API}/version"]
        until(lambda: host.run(version, check=False).stdout, "ollama answers", 20)
        assert host.run(version).stdout == f'{{"version":"{ollama.VERSION}"}}'
        digest = f"sha256:{hashlib.sha256(built.model.read_bytes()).hexdigest()}"
        host.run(["curl", "--silent", "--fail", "-T", f"/run/lab/ollama/{built.model.name}",
                  "-X", "POST", f"{API}/blobs/{digest}"])  # fmt: skip
        made = ask(host, "create", {"model": "rae-tiny", "files": {"tiny.gguf": digest}})
        assert made["status"] == "success"
        options = {"num_predict": 8, "temperature": 0}
        answer = ask(host, "generate", {"model": "rae-tiny", "prompt": "hi", "options": options})
        assert answer["done"] is True and answer["eval_count"] == 8
    finally:
        host.run(["systemctl", "stop", "ollama-test"])
