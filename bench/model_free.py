#!/usr/bin/env python3
"""Time model-free-ptq against a plain copy of the same checkpoint, in turn, and print ratios and peak memory.

usage: model_free.py BINARY CHECKPOINT [SCHEME ...]        default schemes: FP8_DYNAMIC FP8_BLOCK W8A8 W4A16 NVFP4A16

The checkpoint is read once before (warm cache); each scheme runs three times, a copy before each, and the median of the
pairwise ratios is printed. Needs only the standard library.
"""
import os
import shutil
import statistics
import sys
import tempfile

from process import run

binary, checkpoint = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
schemes = sys.argv[3:] or ["FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "W4A16", "NVFP4A16"]
work = tempfile.mkdtemp(dir=os.path.dirname(checkpoint))


def fresh(name):
    path = os.path.join(work, name)
    shutil.rmtree(path, ignore_errors=True)
    return path


try:
    total = 0
    for name in os.listdir(checkpoint):
        with open(os.path.join(checkpoint, name), "rb") as f:
            # Small pieces: a process that is started later counts this one's memory at that moment for its own peak.
            while piece := f.read(1 << 20):
                total += len(piece)
    print(f"{checkpoint}: {total / 1e9:.2f} GB")
    print(f"{'scheme':14} {'seconds':>8} {'GB/s':>6} {'x of cp':>8} {'peak MiB':>9}")
    for scheme in schemes:
        rows = []
        for _ in range(3):
            copy, _ = run(["cp", "-r", checkpoint, fresh("copy")])
            shutil.rmtree(os.path.join(work, "copy"))
            seconds, peak = run([binary, "-q", "model-free-ptq", checkpoint, fresh("out"), "--scheme", scheme])
            rows.append((seconds, seconds / copy, peak))
        seconds, ratio, peak = (statistics.median(column) for column in zip(*rows))
        print(f"{scheme:14} {seconds:8.2f} {total / 1e9 / seconds:6.2f} {ratio:8.2f} {peak:9.0f}", flush=True)
finally:
    shutil.rmtree(work)
