"""Entry point of a task's supervisor: `python3 -ISE supervisor.py`, see `rae_node.supervision`."""

from __future__ import annotations

import os.path
import sys

# -ISE knows the standard library only, and our folder comes last: nothing in it can shadow that.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120 - pathlib is slow to import

from rae_node.supervision import main

if __name__ == "__main__":
    sys.exit(main())
