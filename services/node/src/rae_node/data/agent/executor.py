#!/usr/bin/env python3
"""Whether this node's allow-list lets a command run: executor.py -- COMMAND ARG… Runs nothing."""

import sys

from rae_handover import ROOT, hand_over

hand_over("rae_node", "allows", "--root", ROOT, *sys.argv[1:])
