#!/usr/bin/env bash
# demoBERT's benchmark: scripts/benchmarks/grid.py, which explains its arguments, in the environment that there is.
set -euo pipefail
# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
python=$(find_python)
exec "$python" "$root/scripts/benchmarks/grid.py" "$@"
