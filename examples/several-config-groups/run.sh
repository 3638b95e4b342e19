#!/usr/bin/env bash
# Attention in 8-bit floats, the MLP in 4-bit integers: one checkpoint of mixed precision.
set -euo pipefail
model=${1:?usage: run.sh MODEL OUT} out=${2:?usage: run.sh MODEL OUT}
${LLMCOMPRESSOR:-llmcompressor} model-free-ptq "$model" "$out" --config "$(dirname "$0")/quantization.json"
${LLMCOMPRESSOR:-llmcompressor} verify "$out" --source "$model"
${LLMCOMPRESSOR:-llmcompressor} inspect "$out"
