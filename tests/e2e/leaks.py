"""Where a secret can be read that should not be: in what a run prints, and on a host."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from tests.lab import Host

# The places that are for secrets: root's or systemd's own, and no other user reads them.
KEPT = ("/etc/rae-control/credentials/", "/etc/rae-control/credentials.json", "/run/credentials/",
        "/var/lib/tailscale/tailscaled.state")  # fmt: skip
# Runs on the host. The secrets come by stdin: a command line would be a leak of the test's own.
_LOOK = r"""
import glob, json, os, subprocess, sys, tempfile
words = json.load(sys.stdin)
found = []
for what in ("cmdline", "environ"):
    for file in glob.glob("/proc/[0-9]*/" + what):
        try:
            text = open(file, "rb").read()
        except OSError:
            continue
        found += [f"{name} in {file} ({text[:60]!r})"
                  for name, word in words if word.encode() in text]
journal = subprocess.run(["journalctl", "--all", "--no-pager", "--output=export"], check=True,
                         stdout=subprocess.PIPE).stdout
found += [f"{name} in the journal" for name, word in words if word.encode() in journal]
pattern, told = os.pipe()
os.write(told, "\n".join(word for _, word in words).encode())
os.close(told)
roots = ["/" + name for name in os.listdir("/") if name not in ("proc", "sys", "dev")]
options = ["-raoF", "--devices=skip", f"--file=/dev/fd/{pattern}"]
grep = subprocess.run(["grep", *options, "/dev/shm", *roots], pass_fds=[pattern],
                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
assert grep.returncode in (0, 1, 2), grep
names = {word: name for name, word in words}
for line in grep.stdout.decode(errors="replace").splitlines():
    file, _, word = line.partition(":")
    found.append(f"{names.get(word, '?')} in {file}")
print(json.dumps(found))
"""


def spelled(secrets: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each secret as it is, and as modules carry it."""
    plain = list(secrets.items())
    coded = [
        (f"{name} in base64", base64.b64encode(word.encode()).decode().rstrip("=")[:-1])
        for name, word in plain
    ]
    return plain + coded


def in_text(text: str, secrets: Mapping[str, str]) -> list[str]:
    """What a run printed and should not."""
    lines = text.splitlines()
    return [
        f"{name} in line {number}: {line[:80]}"
        for number, line in enumerate(lines, 1)
        for name, word in spelled(secrets)
        if word in line
    ]


def on_host(host: Host, secrets: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """(what is where it must not be, what is where it belongs) in files, journal and processes."""
    done = host.run(["python3", "-c", _LOOK], stdin=json.dumps(spelled(secrets)), timeout_s=300)
    found: list[str] = json.loads(done.stdout)
    right = [line for line in found if line.partition(" in /")[2].startswith(
        tuple(place[1:] for place in KEPT))]  # fmt: skip
    return [line for line in found if line not in right], right
