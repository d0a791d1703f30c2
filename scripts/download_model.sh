#!/usr/bin/env bash
# Download a fine-tuned BERT from NVIDIA's NGC into models/fine-tuned/.
#
#     bash scripts/download_model.sh [tf|pyt] [base|large|megatron-large] [128|384] [v2|v1_1] [sparse] [int8-qat]
#
# The words may come in any order. Without any: tf large 128 v2.
#
# tf                base or large, 128 or 384 tokens, fine-tuned on SQuAD v1_1 or v2: a TensorFlow checkpoint with its
#                   configuration and vocabulary
# pyt               large, 384 tokens, v1_1: ONNX, trained for int8 (QAT). It has no configuration and no vocabulary:
#                   those of `tf large 384 v2` fit
# megatron-large [sparse] [int8-qat]
#                   Megatron's weights, dense or 2:4 sparse, for fp32 or trained for int8, as a pickle; likewise
#
# The NGC command line (ngc) is used where it is installed, else curl. What is there is kept; a download that broke off
# goes on where it ended; a folder is there whole or not at all. DEMOBERT_NGC_URL names another place to download from.
set -euo pipefail
# shellcheck source=scripts/common.sh
source -- "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/fetching.sh
source "$root/scripts/fetching.sh"

organisation=nvidia
url=${DEMOBERT_NGC_URL:-https://api.ngc.nvidia.com/v2/models/$organisation}

# choose VARIABLE VALUE WORD: sets the variable, unless another word did already.
declare -A word_of
choose() {
    if [ -n "${!1}" ] && [ "${!1}" != "$2" ]; then
        usage_error "${word_of[$1]} and $3 exclude each other"
    fi
    printf -v "$1" %s "$2"
    word_of[$1]=$3
}

framework="" size="" length="" version="" weights="" precision=""
for argument in "$@"; do
    case $argument in
    tf | pyt) choose framework "$argument" "$argument" ;;
    base | large | megatron-large) choose size "$argument" "$argument" ;;
    128 | 384) choose length "$argument" "$argument" ;;
    v2) choose version 2 v2 ;;
    v1_1) choose version 11 v1_1 ;;
    sparse) choose weights sparse sparse ;;
    int8-qat) choose precision int8qat int8-qat ;;
    -h | --help)
        print_help
        exit 0
        ;;
    *) usage_error "unknown word: $argument" ;;
    esac
done

# reject WORD…: the chosen model does not come with these.
reject() {
    local name
    for name in "$@"; do
        [ -z "${!name}" ] || usage_error "$kind does not come with ${word_of[$name]}"
    done
}

# needs: a file that the folder must hold for each of these patterns.
size=${size:-large}
[ "$size" = megatron-large ] && framework=${framework:-pyt}
framework=${framework:-tf}
kind="$framework $size"
case $kind in
"tf base" | "tf large")
    reject weights precision
    name=bert_tf_ckpt_${size}_qa_squad${version:-2}_amp_${length:-128}
    model_version=19.03.1
    needs=('model.ckpt*.index' bert_config.json vocab.txt)
    ;;
"pyt large")
    [ "$version" = 2 ] && reject version
    [ "$length" = 128 ] && reject length
    reject weights
    name=bert_pyt_onnx_large_qa_squad11_amp_fake_quant
    model_version=1
    needs=('*.onnx')
    ;;
"pyt megatron-large")
    [ "$length" = 128 ] && reject length
    name=bert_pyt_statedict_megatron_${weights:-dense}_${precision:-fp32}
    model_version=21.03.0
    needs=('bert_pyt_statedict_megatron_*')
    ;;
*) usage_error "there is no $size with $framework" ;;
esac

folder=${name}_v$model_version
models=$root/models/fine-tuned
if [ -e "$models/$folder" ]; then
    echo "models/fine-tuned/$folder is there"
    exit 0
fi
python=$(find_python)
mkdir -p "$models"
temporary=$(mktemp -d "$models/.$folder.XXXXXX.tmp")
trap 'rm -rf "$temporary"' EXIT

with_ngc() {
    command -v ngc >/dev/null || return 1
    echo "Downloading $organisation/$name:$model_version with the NGC command line"
    if ngc registry model download-version "$organisation/$name:$model_version" --dest "$temporary" &&
        [ -d "$temporary/$folder" ]; then
        return 0
    fi
    rm -rf "${temporary:?}/$folder"
    echo "ngc did not download it; trying curl" >&2
    return 1
}

with_curl() {
    local from=$url/$name/versions/$model_version/zip part=$models/.$folder.zip.part status=0
    echo "Downloading $from"
    fetch "$from" "$part" || status=$?
    [ "$status" = 0 ] || explain_fetch "$status" "$from" "$part"
    if ! "$python" "$root/scripts/downloading/unpack.py" "$part" "$temporary/$folder"; then
        rm -f "$part"
        fail "what $from gave can't be used, and was thrown away: run this again"
    fi
    rm -f "$part"
}

with_ngc || with_curl
for pattern in "${needs[@]}"; do
    [ -n "$(find "$temporary/$folder" -maxdepth 1 -type f -size +0 -name "$pattern" -print -quit)" ] ||
        fail "$name:$model_version has no $pattern: it is not the model that was expected, and was thrown away"
done
mv -T "$temporary/$folder" "$models/$folder"
echo "models/fine-tuned/$folder is complete"
