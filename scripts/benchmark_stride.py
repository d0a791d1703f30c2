#!/usr/bin/env python3
"""What windows that overlap cost and gain in long documents. The code is in scripts/benchmarks/stride.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import cli
from scripts.benchmarks.stride import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    cli.run(main)
