"""The control host: a durable ledger, lanes and leases over it, and the HTTP API in front."""

from __future__ import annotations

__version__ = "0.1.0"
