#!/usr/bin/env bash
# Calibrate 4-bit weights on text, and judge them beside the source and beside plain rounding.
set -euo pipefail
model=${1:?usage: run.sh MODEL OUT} out=${2:?usage: run.sh MODEL OUT}
tool=${LLMCOMPRESSOR:-llmcompressor}
here=$(cd "$(dirname "$0")" && pwd)
calib=${CALIB:-$here/../../fixtures/calib.jsonl} text=${TEXT:-$here/../../fixtures/eval.jsonl}
samples=${SAMPLES:-128}

$tool oneshot "$model" --recipe "$here/recipe.yaml" --data "$calib" --num-samples "$samples" --seq-len 512 --out "$out"
$tool verify "$out" --source "$model"
$tool eval "$model" --data "$text" --seq-len 512 --max-samples "$samples"
$tool eval "$out" --data "$text" --seq-len 512 --max-samples "$samples" --reference "$model"
