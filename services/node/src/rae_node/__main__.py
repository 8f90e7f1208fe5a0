"""`python -m rae_node` is `rae-node`."""

from __future__ import annotations

import sys

from rae_node.cli import main

if __name__ == "__main__":
    sys.exit(main())
