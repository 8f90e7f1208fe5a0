"""A real tailnet for a lab: Tailscale's own programs, and its control server for its own tests."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from tests.lab import preflight, vendor
from tests.lab.cache import Say, cached, do
from tests.lab.preflight import LabError

VERSION = "1.102.3"
_MAIN = Path(__file__).with_name("tailnet") / "main.go"
_MODULE = f"module rae.test/tailnet\n\ngo 1.26.6\n\nrequire tailscale.com v{VERSION}\n"
# testcontrol knows one key for everybody; ours are asked for, one by one.
_ORIGINAL = (
    'if s.RequireAuthKey != "" && (req.Auth == nil || req.Auth.AuthKey != s.RequireAuthKey) {'
)
_PATCHED = "if !Admits(&req) {"
_HOOK = "\n// Admits is asked of each.\nvar Admits func(*tailcfg.RegisterRequest) bool\n"
# Built as a module's, they would not know their own version.
_STAMP = " ".join(f"-X tailscale.com/version.{name}Stamp={VERSION}" for name in ("long", "short"))
UNIT = """[Unit]
Description=Tailscale, for tests of the lab
Wants=network-online.target
After=network-online.target
[Service]
Type=notify
ExecStart=/usr/local/sbin/tailscaled --no-logs-no-support --statedir=/var/lib/tailscale
RuntimeDirectory=tailscale
StateDirectory=tailscale
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Tailnet:
    """The control server that runs for a lab; `programs` are what its hosts need."""

    url: str
    programs: Path
    folder: Path

    def key(self, *, reusable: bool = False) -> str:
        """A new key; it lets one machine in, or any number."""
        key = f"tskey-auth-{'reusable-' if reusable else ''}{secrets.token_hex(12)}"
        (self.folder / "keys" / key).touch(mode=0o600)
        return key


def build(say: Say) -> Path:
    """A folder with `server`, `guest/` with both of Tailscale's programs, and `vendor/`, the
    repository of its package. Raises LabError.
    """
    made_by = Path(vendor.__file__).read_text(encoding="utf-8")
    digest = hashlib.sha256(
        "\n".join([_MAIN.read_text(), _MODULE, _PATCHED, _HOOK, _STAMP, made_by]).encode()
    ).hexdigest()[:12]
    return cached(f"tailnet-{VERSION}-{digest}", say, "three minutes", _build)


def _build(partial: Path, lock: int) -> None:
    preflight.check_go()
    source, guest = partial / "source", partial / "guest"
    (source / "testcontrol").mkdir(parents=True)
    guest.mkdir()
    (source / "go.mod").write_text(_MODULE)
    (source / "main.go").write_bytes(_MAIN.read_bytes())
    # `go list -m` would know the folder only of what is on this machine already.
    told = do(["go", "mod", "download", "-json", "tailscale.com"], lock, cwd=source)
    tailscale = Path(json.loads(told)["Dir"])
    original = (tailscale / "tstest/integration/testcontrol/testcontrol.go").read_text()
    if original.count(_ORIGINAL) != 1:
        raise LabError(f"testcontrol of {VERSION} asks for keys otherwise; look at {__file__}")
    patched = original.replace(_ORIGINAL, _PATCHED) + _HOOK
    (source / "testcontrol" / "testcontrol.go").write_text(patched)
    build = ["go", "build", "-mod=mod", "-trimpath", "-ldflags", f"-s -w {_STAMP}"]
    for output, packages in (
        (partial / "server", ["."]),
        (f"{guest}/", ["tailscale.com/cmd/tailscale", "tailscale.com/cmd/tailscaled"]),
    ):
        do([*build, "-o", str(output), *packages], lock, cwd=source, CGO_ENABLED="0")
    vendor.offer(tailscale, guest, VERSION, partial / "vendor", lock)
    do(["rm", "--recursive", str(source)], lock)
