"""Debian machines with systemd as PID 1 on this machine, for tests: image, boot, ssh, teardown."""

from __future__ import annotations

from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.preflight import LabError

__all__ = ["Host", "Lab", "LabError"]
