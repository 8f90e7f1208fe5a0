"""Asks Ollama one question and streams the answer (`python3 -I llm_child.py CALL`).

Standard library only. Leaves a note like python_child; HANDBACK means that Ollama is not there.
"""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MAX_ANSWER_BYTES = 2 * 1024 * 1024
SILENCE_S = 600.0  # loading a large model from a slow disk takes minutes


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The note."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or 80, timeout=SILENCE_S
    )
    try:
        text = json.dumps(body)
        connection.request("POST", "/api/generate", text, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            problem = response.read(4096).decode(errors="replace")
            return _refused(parts.hostname or "", parts.port or 80, response.status, problem, body)
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
        note = ask(call["url"], call["body"])
    except ValueError as error:
        note = _error("HANDBACK", f"Ollama did not answer in JSON: {error}")
    with Path(call["note"]).open("w", encoding="utf-8") as handle:
        json.dump(note, handle)
    return 0 if "value" in note else 1


if __name__ == "__main__":
    sys.exit(main())
