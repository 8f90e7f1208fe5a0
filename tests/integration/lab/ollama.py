#!/usr/bin/env python3
"""Stands where Ollama will: one model, an endless answer, and a child that holds the memory."""

import json
import os
import subprocess
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """/api/tags, /api/generate."""

    def do_GET(self) -> None:
        """The models."""
        self._begin({"models": [{"name": "tiny:latest"}]})

    def do_POST(self) -> None:
        """An answer without an end, from a loaded model."""
        subprocess.Popen(["sleep", "3600"])
        self._begin()
        while True:
            self.wfile.write(json.dumps({"response": "word "}).encode() + b"\n")
            self.wfile.flush()
            time.sleep(0.05)

    def _begin(self, body: object = None) -> None:
        self.send_response(200)
        self.end_headers()
        if body is not None:
            self.wfile.write(json.dumps(body).encode())


host, port = os.environ["OLLAMA_HOST"].split(":")
assert os.environ["OLLAMA_NO_CLOUD"] == "1"
ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
