"""Stable name for the scripts in `agent/`, which may be older or newer than this release."""

from __future__ import annotations

import sys

from rae_node.diagnostics.checks import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
