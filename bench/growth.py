#!/usr/bin/env python3
"""Time oneshot over numbers of samples and of layers, and print how cost and memory grow.

usage: growth.py BINARY MODEL DATA [MAX_MEMORY=400MB]

GPTQ W4A16 runs on 16 to 128 samples of 512 tokens under a ceiling of memory, then, without one, on 24 samples of MODEL with half of
its layers, all of them, and each twice. A row's ratio is its seconds over those that the row before lets expect: 1.00 is linear
growth. DATA is a file of JSON lines with `text`; MODEL has one model.safetensors. Needs only the standard library.
"""
import json
import os
import shutil
import struct
import sys
import tempfile

from process import run

binary, model, data = (os.path.abspath(path) for path in sys.argv[1:4])
max_memory = sys.argv[4] if len(sys.argv) > 4 else "400MB"
SAMPLES, LAYER_SAMPLES = (16, 32, 64, 128), 24
LAYERS = "model.layers."

RECIPE = """quant_stage:
  quant_modifiers:
    GPTQModifier:
      targets: [Linear]
      ignore: [lm_head]
      scheme: W4A16
"""


def with_layers(path, n_layers):
    """A copy of the model with so many layers, those beyond its own the same ones again."""
    os.makedirs(path)
    with open(os.path.join(model, "config.json")) as f:
        config = json.load(f)
    n_own = config["num_hidden_layers"]
    for name in os.listdir(model):
        if not name.endswith(".safetensors") and name != "config.json":
            shutil.copy(os.path.join(model, name), path)
    if "layer_types" in config:
        config["layer_types"] = [config["layer_types"][layer % n_own] for layer in range(n_layers)]
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(config | {"num_hidden_layers": n_layers}, f)
    with open(os.path.join(model, "model.safetensors"), "rb") as source:
        (length,) = struct.unpack("<Q", source.read(8))
        header = json.loads(source.read(length))
        header.pop("__metadata__", None)
        wanted = []
        for name, entry in header.items():
            if not name.startswith(LAYERS):
                wanted.append((name, entry))
                continue
            own, rest = name[len(LAYERS) :].split(".", 1)
            wanted += [(f"{LAYERS}{layer}.{rest}", entry) for layer in range(int(own), n_layers, n_own)]
        written, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, entry in wanted:
            begin, end = entry["data_offsets"]
            written[name] = entry | {"data_offsets": [offset, offset + end - begin]}
            offset += end - begin
        text = json.dumps(written).encode()
        with open(os.path.join(path, "model.safetensors"), "wb") as target:
            target.write(struct.pack("<Q", len(text)) + text)
            for _, entry in wanted:
                begin, end = entry["data_offsets"]
                source.seek(8 + length + begin)
                left = end - begin
                while left:
                    piece = source.read(min(left, 1 << 20))
                    if not piece:
                        sys.exit(f"{model}: the file ends within a tensor")
                    target.write(piece)
                    left -= len(piece)
    return path


def compress(work, source, n_samples, *extra):
    """Seconds and peak resident MiB of one run."""
    out = os.path.join(work, "out")
    shutil.rmtree(out, ignore_errors=True)
    command = [binary, "-q", "oneshot", source, "--recipe", os.path.join(work, "recipe.yaml"), "--data", data, "--out", out]
    command += ["--num-samples", str(n_samples), "--no-shuffle", "--seq-len", "512", *extra]
    return run(command)


def table(what, rows):
    """Prints a row for each size as it is measured."""
    print(f"{what:>8} {'seconds':>8} {'ratio':>6} {'peak MiB':>9}")
    before = None
    for size, measure in rows:
        seconds, peak = measure()
        ratio = f"{seconds / before[1] * before[0] / size:6.2f}" if before else f"{'':6}"
        print(f"{size:8} {seconds:8.2f} {ratio} {peak:9.0f}", flush=True)
        before = (size, seconds)


work = tempfile.mkdtemp()
try:
    with open(os.path.join(work, "recipe.yaml"), "w") as f:
        f.write(RECIPE)
    print(f"samples, --max-memory {max_memory}")
    table("samples", [(n, lambda n=n: compress(work, model, n, "--max-memory", max_memory)) for n in SAMPLES])
    with open(os.path.join(model, "config.json")) as f:
        n_own = json.load(f)["num_hidden_layers"]
    sizes = [n for n in (n_own // 2, n_own, 2 * n_own) if n]
    copies = {n: with_layers(os.path.join(work, str(n)), n) for n in sizes}
    print(f"layers, {LAYER_SAMPLES} samples")
    table("layers", [(n, lambda n=n: compress(work, copies[n], LAYER_SAMPLES)) for n in sizes])
finally:
    shutil.rmtree(work)
