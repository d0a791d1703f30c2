#!/usr/bin/env bash
# demoBERT's benchmark: scripts/benchmarks/grid.py, which explains its arguments, in the environment that there is.
# A GPU's grid is refused before anything starts where there is no such GPU.
set -euo pipefail
# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
python=$(find_python)
grid=$root/scripts/benchmarks/grid.py

# check_gpu ARCHITECTURE: ends the script, in one line, where this machine has no such GPU or can't use it.
check_gpu() {
    local reason
    reason=$(
        "$python" - "$root" "$1" <<'END'
import sys

sys.path[0], wanted = sys.argv[1:]
from helpers.backends.tensorrt import gpu, module
from helpers.errors import DemoBertError

try:
    found = gpu.gpu(gpu.cuda_driver())
    module.load(module.TENSORRT)
except DemoBertError as error:
    print(f"there is no {wanted} GPU here that TensorRT could use (--gpu CPU needs none): {error}")
    sys.exit()
names = {(7, 0): "Volta", (7, 2): "Xavier", (7, 5): "Turing"}
major = found.compute_capability[0]
name = names.get(found.compute_capability, "Hopper" if major > 8 else "Ampere" if major == 8 else None)
if name != wanted:
    print(f"there is no {wanted} GPU here, but {found}" + (f": --gpu {name}" if name else ", which is not in the grid"))
END
    ) || reason="--gpu $1 can't be measured here: its GPU could not be asked"
    [ -z "$reason" ] || fail "$reason"
}

gpu="" previous="" runs=yes
for argument in "$@"; do
    [ "$previous" = --gpu ] && gpu=$argument
    case $argument in
    --gpu=*) gpu=${argument#--gpu=} ;;
    -h | --help | --dry-run | --redraw | --redraw=*) runs=no ;;
    esac
    previous=$argument
done
if [ $runs = yes ] && [ -n "$gpu" ] && [ "$gpu" != CPU ]; then
    "$python" "$grid" "$@" --dry-run >/dev/null # a mistake in the arguments is said first
    check_gpu "$gpu"
fi
exec "$python" "$grid" "$@"
