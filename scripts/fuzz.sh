#!/usr/bin/env bash
# Attack everything that reads what others may have written: damaged archives, tokenizers, checkpoints, configurations,
# caches, engines, cards, SQuAD files, tables, arrays; and the C++ side, where it is built.
#
#     bash scripts/fuzz.sh [SECONDS]        (for each fuzzer; default: 60)
#
# Each prints its first seed and what came of its rounds. A traceback, a crash or anything else that should not be is
# named with its seed, and the script ends with 1.
set -euo pipefail
# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
case ${1-} in -h | --help) expect_no_arguments "$1" ;; esac
seconds=${1:-60}
[[ $seconds =~ ^[1-9][0-9]{0,5}$ ]] || usage_error "SECONDS must be a whole number from 1 to 999999, not '$seconds'"
(($# <= 1)) || usage_error "one argument at most: SECONDS"
cd "$root"

prepare_environment requirements.txt requirements-dev.txt
fuzzers=(archives tokenizers readers)
if compgen -G 'build/infer_c*.so' >/dev/null && [[ -x build/perf ]]; then
    fuzzers+=(cpp)
else
    echo "The C++ side is not built (README): it is left out"
fi
failed=0
for fuzzer in "${fuzzers[@]}"; do
    echo "== $fuzzer"
    .venv/bin/python -m "tests.fuzz_$fuzzer" --seconds "$seconds" || failed=1
done
exit "$failed"
