#!/usr/bin/env python3
"""A task's supervisor (rae-task@.service): the installed release's, which needs no library."""

import glob
import os
import sys

# -ISE knows nothing but the standard library, and the release comes last: it can shadow nothing.
current = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "current")
sys.path += glob.glob(os.path.join(current, "lib", "python3.*", "site-packages"))

from rae_node.supervision import main  # noqa: E402 - only found from here on

if __name__ == "__main__":
    sys.exit(main())
