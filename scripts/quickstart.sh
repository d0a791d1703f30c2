#!/usr/bin/env bash
# From a fresh clone to an answer: environment, engine of the bundled model, one question.
# Run it again as often as you like; what is there already is kept.
set -euo pipefail
# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/environment.sh
source "$root/scripts/environment.sh"
expect_no_arguments "$@"
cd "$root"

prepare_environment requirements.txt

model=models/bundled/bert_mini_squad11
engine=engines/bert_mini_384.engine
# An engine that this OpenVINO or this CPU can't load is built again.
if ! .venv/bin/python perf.py -e $engine -s 8 -i 1 -w 0 >/dev/null 2>&1; then
    echo "Building $engine from $model"
    mkdir -p engines
    .venv/bin/python builder.py -pt $model -o $engine -b 8 -s 384
fi

passage="TensorRT is a high performance deep learning inference platform that delivers low latency and high throughput \
for apps such as recommenders, speech and image/video on NVIDIA GPUs. It includes parsers to import models, and plugins \
to support novel ops and layers before applying optimizations for inference. Today NVIDIA is open-sourcing parsers and \
plugins in TensorRT so that the deep learning community can customize and extend these components to take advantage of \
powerful TensorRT optimizations for your apps."
echo "Asking it a question"
.venv/bin/python inference.py -e $engine -p "$passage" -q "What is TensorRT?"
