#!/usr/bin/env bash
# compressed-tensors to AutoAWQ's layout, back, and to plain weights.
set -euo pipefail
model=${1:?usage: run.sh MODEL OUT} out=${2:?usage: run.sh MODEL OUT}
tool=${LLMCOMPRESSOR:-llmcompressor}
$tool model-free-ptq "$model" "$out/w4a16" --scheme W4A16
$tool convert "$out/w4a16" "$out/awq" --to auto-awq
$tool convert "$out/awq" "$out/back" --to compressed-tensors
$tool convert "$out/back" "$out/dense" --to dense
$tool verify "$out/dense" --source "$model"
