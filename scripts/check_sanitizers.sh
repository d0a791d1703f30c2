#!/usr/bin/env bash
# Build infer_c and perf with AddressSanitizer and UndefinedBehaviorSanitizer into build-sanitized/ and run their tests,
# the CPU paths, under them. Arguments go to pytest; needs scripts/test.sh's environment and GCC.
set -euo pipefail

# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
case ${1-} in -h | --help) expect_no_arguments "$1" ;; esac
cd "$root"
python="${PYTHON:-.venv/bin/python}"
build="$PWD/build-sanitized"

cmake -S . -B "$build" "-DPYTHON_EXECUTABLE=$(command -v "$python")" -DCMAKE_BUILD_TYPE=Debug -DSANITIZE=address,undefined >/dev/null
make -C "$build" -j2 | grep -E 'warning|error|Built' || true

# Python has no sanitizer of its own, so they are loaded before it. What it and OpenVINO keep to the end are no leaks of
# ours: leaks are looked for in perf alone. ASan's dlopen does not see who calls it: the backends' folder is named.
# --capture=sys lets the sanitizers' own reports through.
export DEMOBERT_CPP_BUILD="$build" LD_LIBRARY_PATH="$build"
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export TBB_ENABLE_SANITIZERS=1 # oneTBB leaves out RTLD_DEEPBIND, which ASan does not allow
preloaded="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so)"
ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$preloaded" "$python" -m pytest tests/test_infer_c.py tests/test_perf_outputs.py \
    --capture=sys \
    --deselect tests/test_infer_c.py::test_questions_of_all_of_xquad_get_the_same_predictions \
    --deselect tests/test_infer_c.py::test_loading_and_freeing_again_and_again_does_not_grow_memory "$@"

engine="$(mktemp -d)/mini.engine"
trap 'rm -r "$(dirname "$engine")"' EXIT
"$python" builder.py -pt models/bundled/bert_mini_squad11 -o "$engine" -b 2 -s 64 --backend openvino >/dev/null
printf 'leak:libopenvino\nleak:libtbb\n' >"$(dirname "$engine")/suppressions"
export ASAN_OPTIONS=detect_leaks=1 LSAN_OPTIONS="suppressions=${engine%/*}/suppressions:print_suppressions=0"
"$build/perf" -e "$engine" -b 1 -b 2 -s 16 -i 5 --json "$(dirname "$engine")/report.json"
if "$build/perf" -e /dev/null; then
    exit 1
fi
echo "No sanitizer complained."
