#!/usr/bin/env python3
"""What this machine can do, as the node tells control (C2), as JSON."""

import sys

from rae_handover import ROOT, hand_over

hand_over("rae_node", "probe", "--root", ROOT, *sys.argv[1:])
