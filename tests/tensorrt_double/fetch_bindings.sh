#!/usr/bin/env bash
# Fetches what tests/test_tensorrt_bindings.py compares the TensorRT double with: NVIDIA's Python bindings of four
# releases (1 MB each, nothing runs without the libraries they miss) and TensorRT-RTX (90 MB, builds without a GPU).
# They can't be installed side by side, so each goes into a folder of its own under the environment's bindings/.
# Usage: fetch_bindings.sh [python]
set -euo pipefail

python=${1:-python3}
root=$("$python" -c 'import sys; print(sys.prefix)')/bindings
mkdir -p "$root"

fetch() { # fetch VERSION REQUIREMENT...
    local folder=$root/$1
    shift
    [ -e "$folder/.complete" ] && return
    rm -rf "$folder"
    # --target keeps the package out of the environment itself; --no-deps leaves out the CUDA libraries.
    if "$python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --target "$folder" "$@"; then
        touch "$folder/.complete"
    else
        echo "could not fetch $* (no wheel for this Python, or no network): its comparison is skipped" >&2
        rm -rf "$folder"
    fi
}

fetch 8.6.1 tensorrt-bindings==8.6.1
fetch 10.0.1 tensorrt-cu12-bindings==10.0.1
fetch 10.16.1 tensorrt-cu12-bindings==10.16.1.11
fetch 11.4.0 tensorrt-cu12-bindings==11.4.0.106
fetch tensorrt_rtx tensorrt-rtx-cu12==1.7.1.116 tensorrt-rtx-cu12-bindings==1.7.1.116 tensorrt-rtx-cu12-libs==1.7.1.116
