#!/usr/bin/env bash
# Compile the TensorRT backend of infer_c, with all warnings as errors, against TensorRT's headers: one folder (the one
# with NvInfer.h) or several. CUDA's are those of nvcc, or of CUDA_INCLUDE=FOLDER. Nothing is linked or kept.
#
#     bash scripts/check_cpp_headers.sh [--rtx] FOLDER…      --rtx: as the TensorRT-RTX backend
set -euo pipefail

# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
case ${1-} in -h | --help) expect_no_arguments "$1" ;; esac
flavour=()
if [ "${1:-}" = --rtx ]; then
    flavour=(-DDEMOBERT_TENSORRT_RTX)
    shift
fi
[ $# -gt 0 ] || usage_error "name a folder of TensorRT's headers"
cuda="${CUDA_INCLUDE:-}"
if [ -z "$cuda" ]; then
    if ! command -v nvcc >/dev/null; then
        echo "nvcc is not on PATH: name CUDA's headers, CUDA_INCLUDE=/usr/local/cuda/include" >&2
        exit 1
    fi
    # nvcc itself says where it looks: it may be a wrapper script in another folder.
    cuda="$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ INCLUDES="-I\([^"]*\)".*/\1/p')"
fi

version_of() { # MAJOR.MINOR.PATCH of a header's NvInferVersion.h
    printf '#include <NvInferVersion.h>\nNV_TENSORRT_MAJOR.NV_TENSORRT_MINOR.NV_TENSORRT_PATCH\n' |
        "${CXX:-g++}" -E -P -isystem "$1" -x c++ - | tail -n 1 | tr -d ' '
}

for headers in "$@"; do
    if [ ! -f "$headers/NvInfer.h" ]; then
        echo "no NvInfer.h in $headers" >&2
        exit 1
    fi
    "${CXX:-g++}" -std=c++17 -O2 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -fPIC "${flavour[@]}" \
        -isystem "$headers" -isystem "$cuda" -c "$root/infer_c/tensorrt_engine.cpp" -o /dev/null
    echo "ok: infer_c/tensorrt_engine.cpp against TensorRT $(version_of "$headers"), CUDA $(
        sed -n 's/^#define CUDART_VERSION *\([0-9]*\)/\1/p' "$cuda/cuda_runtime_api.h")"
done
