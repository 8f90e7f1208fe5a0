"""Asks Ollama one question and streams the answer (`python3 -I llm_child.py CALL`).

Standard library only. Leaves a note like python_child; HANDBACK means that Ollama is not there.
"""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MAX_ANSWER_BYTES = 2 * 1024 * 1024
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp, see proc_net_tcp in the kernel's documentation
SILENCE_S = 600.0  # loading a large model from a slow disk takes minutes


def listeners(port: int) -> dict[int, int]:
    """Who waits for connections on a port of loopback: users by socket (its inode).

    Raises OSError.
    """
    found = {}
    for table in ("tcp", "tcp6"):
        file = Path("/proc/self/net", table)
        for line in file.read_text(encoding="ascii").splitlines()[1:] if file.exists() else ():
            fields = line.split()
            host, _, number = fields[1].partition(":")
            if fields[3] == _LISTEN and int(number, 16) == port and _on_loopback(host):
                found[int(fields[9])] = int(fields[7])
    return found


def _on_loopback(host: str) -> bool:
    """Whether a listener at this address, as the kernel prints it, gets loopback's connections."""
    words = (int(host[at : at + 8], 16) for at in range(0, len(host), 8))
    address = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    plain = len(address) == 4 or address[:12] in (bytes(12), bytes(10) + b"\xff\xff")
    return plain and (address[-4] == 127 or address[-4:] in (bytes(4), b"\0\0\0\1"))


def stranger(port: int, held: dict[int, int], uids: Collection[int]) -> str:
    """Why these listeners are not the model runner, which is one of `uids`; "": they are."""
    others = sorted(str(uid) for uid in set(held.values()).difference(uids))
    if not others:
        return ""
    return (
        f"port {port} is held by a program of uid {', '.join(others)}, which is not the model "
        f"runner's; end that program (as root `ss -ltnp sport = :{port}` shows it), or name its "
        "user as ollama_user in config.yaml"
    )


def ask(url: str, body: dict[str, Any], uids: Collection[int]) -> dict[str, Any]:
    """The note. `uids`: whose program is asked, and no other user's."""
    parts = urlsplit(url)
    port = parts.port or 80
    connection = http.client.HTTPConnection(parts.hostname or "", port, timeout=SILENCE_S)
    try:
        text = json.dumps(body)
        held = listeners(port)
        if problem := stranger(port, held, uids):
            return _error("HANDBACK", f"Ollama is not asked: {problem}")
        connection.connect()
        if listeners(port) != held:  # who took the port meanwhile may have got the connection
            return _error("HANDBACK", f"Ollama is not asked: port {port} changed hands just now")
        connection.request("POST", "/api/generate", text, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            problem = response.read(4096).decode(errors="replace")
            return _refused(parts.hostname or "", port, response.status, problem, body)
        return _stream(response, str(body["model"]))
    except (OSError, http.client.HTTPException) as error:
        return _error("HANDBACK", f"Ollama at {url} does not answer: {error}")
    finally:
        connection.close()


def _stream(response: http.client.HTTPResponse, model: str) -> dict[str, Any]:
    pieces: list[str] = []
    size = 0
    for line in response:
        part = json.loads(line)
        if "error" in part:
            return _error("E_EXIT", f"Ollama: {part['error']}")
        piece = str(part.get("response", ""))
        size += len(piece.encode())
        if size > MAX_ANSWER_BYTES:
            return _error("E_ARTIFACT", f"The answer is longer than {MAX_ANSWER_BYTES} bytes")
        pieces.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
        if part.get("done"):
            counts = {
                name: part[name]
                for name in ("eval_count", "prompt_eval_count", "total_duration", "done_reason")
                if name in part
            }
            return {"value": {"model": model, "response": "".join(pieces), **counts}}
    return _error("HANDBACK", "Ollama broke off in the middle of its answer")


def _refused(
    host: str, port: int, status: int, problem: str, body: dict[str, Any]
) -> dict[str, Any]:
    if status == 404:
        connection = http.client.HTTPConnection(host, port, timeout=5.0)
        try:
            connection.request("GET", "/api/tags")
            listed = json.loads(connection.getresponse().read())
            names = ", ".join(sorted(str(item["name"]) for item in listed["models"])) or "none"
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            names = "unknown"
        finally:
            connection.close()
        return _error("E_INVALID", f"The model '{body['model']}' is not here; here are: {names}")
    if status >= 500:
        return _error("HANDBACK", f"Ollama answered HTTP {status}: {problem[:500]}")
    return _error("E_INVALID", f"Ollama answered HTTP {status}: {problem[:500]}")


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def main() -> int:
    """Exit code 0 when there is an answer, 1 when not."""
    call = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        note = ask(call["url"], call["body"], call["uids"])
    except ValueError as error:
        note = _error("HANDBACK", f"Ollama did not answer in JSON: {error}")
    with Path(call["note"]).open("w", encoding="utf-8") as handle:
        json.dump(note, handle)
    return 0 if "value" in note else 1


if __name__ == "__main__":
    sys.exit(main())
