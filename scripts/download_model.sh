#!/usr/bin/env bash
# Download a fine-tuned BERT from NVIDIA's NGC into models/fine-tuned/.
#
#     bash scripts/download_model.sh [tf|pyt] [base|large|megatron-large] [128|384] [v2|v1_1] [sparse] [int8-qat]
#                                    [--sha256 HEX]
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
#
# NVIDIA publishes no SHA-256 of these models. The one that is seen first is kept, in models/fine-tuned/SHA256SUMS
# (`sha256sum -c --ignore-missing SHA256SUMS` there), and every later run and download is held to it. That is trust on
# first use: it shows that a model changed, and is no signature of who made it. `--sha256 HEX` asks for a SHA-256 that you
# know: the zip archive's (curl only: ngc shows no archive) or that of one of the model's files.
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

framework="" size="" length="" version="" weights="" precision="" pin=""
while [ $# -gt 0 ]; do
    case $1 in
    tf | pyt) choose framework "$1" "$1" ;;
    base | large | megatron-large) choose size "$1" "$1" ;;
    128 | 384) choose length "$1" "$1" ;;
    v2) choose version 2 v2 ;;
    v1_1) choose version 11 v1_1 ;;
    sparse) choose weights sparse sparse ;;
    int8-qat) choose precision int8qat int8-qat ;;
    --sha256)
        pin=$(value_of "$@")
        [[ $pin =~ ^[0-9A-Fa-f]{64}$ ]] || usage_error "--sha256 $pin is not 64 hexadecimal digits"
        pin=${pin,,}
        shift
        ;;
    -h | --help)
        print_help
        exit 0
        ;;
    *) usage_error "unknown word: $1" ;;
    esac
    shift
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
shown=models/fine-tuned/$folder
list=$models/SHA256SUMS
[ ! -e "$list" ] || [ -r "$list" ] || fail "$list can't be read"
# Of this model: the list's lines of files, and its comment on the archive that they came from.
known=$(grep -sF "  $folder/" "$list" || true)
archive=$(grep -sF "  $folder.zip" "$list" || true)

# sums_in PLACE: the lines that the list should have for the model's folder in PLACE.
sums_in() {
    (cd -- "$1" && find "$folder" -type f -print0 | LC_ALL=C sort -z | xargs -0 --no-run-if-empty sha256sum) 2>/dev/null
}

# first_other WHICH: the first file whose line differs between known and sums: comm's -23, only of those that are known;
# -3, of all.
first_other() {
    LC_ALL=C comm "$1" <(LC_ALL=C sort <<<"$known") <(LC_ALL=C sort <<<"$sums") | sed -n '1s/^[[:space:]]*[^ ]*  //p'
}

# is_pinned LINES…: whether the archive or a file has the SHA-256 that was asked for, if any was.
is_pinned() {
    [ -z "$pin" ] || printf '%s\n' "$@" | grep "^\(# \)\?$pin " >/dev/null
}

# Held to what is known of it, or seen for the first time.
check_what_is_there() {
    local other
    [ -d "$models/$folder" ] || fail "$shown is there, but is not a folder: move it away first"
    sums=$(sums_in "$models") || fail "$shown can't be read"
    if [ -n "$known" ]; then
        other=$(first_other -23)
        [ -z "$other" ] || fail "models/fine-tuned/$other is not what was downloaded (its SHA-256 differs from" \
            "models/fine-tuned/SHA256SUMS): move $shown away and run this again"
    fi
    is_pinned "$archive" "$sums" || fail "no file of $shown, nor the archive that it came from as far as it is known, has the SHA-256" \
        "$pin: move the folder away and run this again"
    if [ -z "$known" ]; then
        printf '%s\n' "$sums" >>"$list"
        echo "$shown is there; its SHA-256 is kept in models/fine-tuned/SHA256SUMS from now on"
    else
        echo "$shown is there, as it was downloaded"
    fi
}

if [ -e "$models/$folder" ] || [ -L "$models/$folder" ]; then
    check_what_is_there
    exit 0
fi
python=$(find_python)
mkdir -p "$models"
# The folder for what is not complete is locked by the run whose it is: what lies in it then is of a run that was killed.
temporary=$models/.$folder.tmp
mkdir -p "$temporary"
command -v flock >/dev/null || fail "flock is not installed: apt-get install util-linux"
exec 9<"$temporary"
flock --nonblock 9 && [ "/proc/$$/fd/9" -ef "$temporary" ] && [ ! -e "$models/$folder" ] ||
    fail "another run is downloading $shown, or just did: run this again when it has ended"
trap 'rm -rf "$temporary"' EXIT
find "$temporary" -mindepth 1 -delete
rm -rf "$models/.$folder".??????.tmp # as this script once called it

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
    downloaded="# $(sha256_of "$part")  $folder.zip"
    if ! "$python" "$root/scripts/downloading/unpack.py" "$part" "$temporary/$folder"; then
        rm -f "$part"
        fail "what $from gave can't be used, and was thrown away: run this again"
    fi
    rm -f "$part"
}

downloaded=""
with_ngc || with_curl
for pattern in "${needs[@]}"; do
    [ -n "$(find "$temporary/$folder" -maxdepth 1 -type f -size +0 -name "$pattern" -print -quit)" ] ||
        fail "$name:$model_version has no $pattern: it is not the model that was expected, and was thrown away"
done
sums=$(sums_in "$temporary")
if [ -n "$known" ]; then
    other=$(first_other -3)
    [ -z "$other" ] || fail "$other is not what it was when $name:$model_version was downloaded first (its SHA-256 differs" \
        "from models/fine-tuned/SHA256SUMS), and was thrown away: find out why; if it may change, take the lines of" \
        "$folder out of that file"
fi
is_pinned "$downloaded" "$sums" ||
    fail "neither the archive of $name:$model_version nor a file in it has the SHA-256 $pin: it was thrown away;" \
        "check the SHA-256, or where it is downloaded from"
# The list has the lines before the folder has its name: no folder is there without them.
new=()
[ -z "$downloaded" ] || grep -qxF -e "$downloaded" <<<"$archive" || new+=("$downloaded")
[ -n "$known" ] || new+=("$sums")
[ ${#new[@]} = 0 ] || printf '%s\n' "${new[@]}" >>"$list"
mv -T "$temporary/$folder" "$models/$folder"
if [ -n "$known" ]; then
    echo "$shown is complete, and what it was when it was downloaded first"
else
    echo "$shown is complete; its SHA-256, seen for the first time, is kept in models/fine-tuned/SHA256SUMS"
fi
