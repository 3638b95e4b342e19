#!/usr/bin/env bash
# Damage one byte of a scale and see it found.
set -euo pipefail
model=${1:?usage: run.sh MODEL OUT} out=${2:?usage: run.sh MODEL OUT}
tool=${LLMCOMPRESSOR:-llmcompressor}
$tool model-free-ptq "$model" "$out" --scheme NVFP4A16
$tool verify "$out"
python3 - "$out/model.safetensors" <<'PY'
import json, struct, sys
with open(sys.argv[1], "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    header = json.loads(f.read(n))
    name = next(k for k in header if k.endswith("weight_scale"))
    f.seek(8 + n + header[name]["data_offsets"][0])
    f.write(b"\x00")
    print("damaged", name)
PY
if $tool verify "$out"; then echo "the damage was not found" >&2; exit 1; fi
