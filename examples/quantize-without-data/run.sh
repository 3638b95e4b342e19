#!/usr/bin/env bash
# Quantize a model without calibration data, then prove that the result is sound.
set -euo pipefail
model=${1:?usage: run.sh MODEL OUT} out=${2:?usage: run.sh MODEL OUT}
${LLMCOMPRESSOR:-llmcompressor} model-free-ptq "$model" "$out" --scheme FP8_DYNAMIC
${LLMCOMPRESSOR:-llmcompressor} verify "$out" --source "$model"
