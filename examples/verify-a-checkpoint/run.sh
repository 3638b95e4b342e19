#!/usr/bin/env bash
# Damage one byte of a scale and see it found.
set -euo pipefail
model=${1:?usage: run.sh MODEL OUT} out=${2:?usage: run.sh MODEL OUT}
tool=${LLMCOMPRESSOR:-llmcompressor}
$tool model-free-ptq "$model" "$out" --scheme NVFP4A16
$tool verify "$out"

# A safetensors file: the header's length in 8 bytes, the header, the data that the header's offsets count in.
file=$out/model.safetensors
length=$(od -An -t u8 -N 8 "$file" | tr -d ' ')
header=$(head -c $((8 + length)) "$file" | tail -c "$length")
scale=$(grep -o '"[^"]*\.weight_scale":{[^}]*}' <<<"$header" | sed -n 1p)
begin=$(sed -E 's/.*"data_offsets":\[([0-9]+),.*/\1/' <<<"$scale")
printf '\0' | dd of="$file" bs=1 seek=$((8 + length + begin)) conv=notrunc status=none
echo "damaged ${scale%%:*}"

code=0
$tool verify "$out" || code=$?
if [ "$code" != 3 ]; then echo "the damage was not found" >&2; exit 1; fi
