"""Everything the scripts share; docs/architecture.md says how it is laid out."""

import sys

# Every script imports this first. An older Python would end in a traceback about the first line that it can't read.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(f"{sys.argv[0]}: error: Python 3.10 or newer is needed, and {sys.executable} is {sys.version.split()[0]}")
