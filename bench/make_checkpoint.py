#!/usr/bin/env python3
"""Write a bf16 Llama-shaped checkpoint of a chosen size for speed and memory benches (standard library only).

usage: make_checkpoint.py OUT [GIGABYTES=2] [SHARDS=4]

Weights are pseudo-random with exponents as in trained models (about 0.004 to 0.06 in magnitude); the bytes depend on the
arguments alone.
"""
import json
import os
import random
import struct
import sys

out = sys.argv[1]
size = int(float(sys.argv[2]) * 1e9) if len(sys.argv) > 2 else 2_000_000_000
n_shards = int(sys.argv[3]) if len(sys.argv) > 3 else 4
HIDDEN, INTERMEDIATE, VOCABULARY, HEADS, KV_HEADS = 2048, 5632, 32000, 32, 8

rng = random.Random(0)
POOL_BYTES = 16 << 20
low = rng.randbytes(POOL_BYTES // 2)
# High byte of a bf16: sign and seven exponent bits; 0x3b..0x3d and their negatives keep magnitudes small.
high = rng.randbytes(POOL_BYTES // 2).translate(bytes([(0x3B, 0x3C, 0x3C, 0x3D)[i & 3] | (i & 0x80) for i in range(256)]))
pool = bytearray(POOL_BYTES)
pool[0::2], pool[1::2] = low, high


def tensors():
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    head = HIDDEN // HEADS
    layer_bytes = 2 * (2 * HIDDEN * HIDDEN + 2 * KV_HEADS * head * HIDDEN + 3 * HIDDEN * INTERMEDIATE)
    n_layers = max(1, (size - 4 * VOCABULARY * HIDDEN) // layer_bytes)
    for i in range(n_layers):
        prefix = f"model.layers.{i}."
        yield prefix + "input_layernorm.weight", [HIDDEN]
        for name, rows in (("q", HIDDEN), ("k", KV_HEADS * head), ("v", KV_HEADS * head), ("o", HIDDEN)):
            yield prefix + f"self_attn.{name}_proj.weight", [rows, HIDDEN]
        yield prefix + "post_attention_layernorm.weight", [HIDDEN]
        yield prefix + "mlp.gate_proj.weight", [INTERMEDIATE, HIDDEN]
        yield prefix + "mlp.up_proj.weight", [INTERMEDIATE, HIDDEN]
        yield prefix + "mlp.down_proj.weight", [HIDDEN, INTERMEDIATE]
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCABULARY, HIDDEN]


def n_bytes(shape):
    count = 2
    for extent in shape:
        count *= extent
    return count


everything = list(tensors())
total = sum(n_bytes(shape) for _, shape in everything)
os.makedirs(out, exist_ok=True)
shards, filled = [[]], 0
for name, shape in everything:
    if filled >= total / n_shards and len(shards) < n_shards:
        shards.append([])
        filled = 0
    shards[-1].append((name, shape))
    filled += n_bytes(shape)

weight_map, at = {}, 0
for index, shard in enumerate(shards):
    file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shard:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + n_bytes(shape)]}
        offset += n_bytes(shape)
        weight_map[name] = file
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(out, file), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shard:
            left = n_bytes(shape)
            while left:
                # Start points differ, so that neighbouring tensors are not copies of one another.
                at = (at + 7919 * 2) % POOL_BYTES
                piece = memoryview(pool)[at : at + left]
                f.write(piece)
                left -= len(piece)

config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_hidden_layers": sum("q_proj" in name for name, _ in everything),
    "vocab_size": VOCABULARY, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}
with open(os.path.join(out, "config.json"), "w") as f:
    json.dump(config, f, indent=2)
with open(os.path.join(out, "model.safetensors.index.json"), "w") as f:
    json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, f, indent=2)
print(f"{out}: {len(everything)} tensors, {total / 1e9:.2f} GB in {len(shards)} shards")
