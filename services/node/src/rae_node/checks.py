"""Stable name for the scripts in `agent/`, which may be older or newer than this release."""

from __future__ import annotations

import os
import sys

from rae_node.diagnostics.checks import main

if __name__ == "__main__":
    # At once: a source that hangs, or a closed stdout, does not change the exit code.
    os._exit(main(sys.argv[1:]))
