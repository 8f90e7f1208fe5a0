"""Stands in for the supervisor: runs the Python of the first line, and prints that one's `told`.

Then it waits, as a supervisor does, for the end of the connection, and ends with it.
"""

import json
import sys


def main() -> None:
    """One connection."""
    told: dict[str, object] = {}
    exec(json.loads(sys.stdin.readline()), {"told": told})
    print(json.dumps(told), flush=True)
    sys.stdin.read()


main()
