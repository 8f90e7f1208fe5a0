"""Entry point of a task's supervisor: `python3 -ISE entry.py`."""

from __future__ import annotations

import os.path
import sys

# -ISE knows the standard library only, and our folder comes last: nothing in it can shadow that.
sys.path.append(os.path.abspath(__file__ + "/../../.."))  # noqa: PTH100 - pathlib is slow to import

from rae_node.supervisor.supervisor import main

if __name__ == "__main__":
    sys.exit(main())
