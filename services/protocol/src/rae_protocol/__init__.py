"""The wire of RAE Mesh: bodies, errors, signatures and the clients of both sides.

Nothing in here knows Flask or Redis; control and node both build on it and never on each other.
"""

from __future__ import annotations

__version__ = "0.1.0"
