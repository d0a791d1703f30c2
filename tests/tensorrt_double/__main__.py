"""`python -m tests.tensorrt_double VERSION script.py args…` runs a script against the double."""

import os
import runpy
import sys

from tests.tensorrt_double import VERSIONS, install


def main() -> None:
    """Runs the script as `__main__`, with its own folder on the path as Python itself would put it."""
    if len(sys.argv) < 3 or sys.argv[1] not in VERSIONS:
        sys.exit(f"usage: python -m tests.tensorrt_double {{{','.join(VERSIONS)}}} script.py [argument …]")
    install(sys.argv[1])
    sys.argv = sys.argv[2:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
