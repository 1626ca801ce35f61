#!/usr/bin/env python3
"""A Gemma 4 drafter of random weights with the shapes of the published ones, to measure what drafting costs.

    pip install gguf numpy
    bench/make_drafter.py --target 12b --type q4_0 mtp-12b.gguf
    carat bench 12b.gguf --draft 1,2,4 --accept 0,0.5,0.8 --drafter mtp-12b.gguf

What it guesses is noise: `carat bench --accept` decides by dice which guesses are right.
"""

import argparse

import gguf
import numpy as np

# width of the target and of the drafter, query heads, key-value heads of local and global layers, feed-forward, window
SHAPES = {
    "12b": (3840, 1024, 16, 8, 1, 8192, 1024),
    "26b-a4b": (2816, 1024, 16, 8, 2, 8192, 1024),
    "31b": (5376, 1024, 32, 16, 4, 8192, 1024),
}
LOCAL, GLOBAL = 256, 512  # elements of a head
LAYERS = 4  # the last is global
TYPES = {"q4_0": (gguf.GGMLQuantizationType.Q4_0, 16), "q8_0": (gguf.GGMLQuantizationType.Q8_0, 32)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument("--target", choices=SHAPES, default="12b")
    parser.add_argument("--type", choices=TYPES, default="q4_0")
    parser.add_argument("--vocabulary", type=int, default=262144)
    options = parser.parse_args()
    target, width, heads, local_kv, global_kv, feed_forward, window = SHAPES[options.target]
    dtype, code_bytes = TYPES[options.type]
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(options.out, "gemma4-assistant")

    writer.add_block_count(LAYERS)
    writer.add_embedding_length(width)
    writer.add_uint32("gemma4-assistant.embedding_length_out", target)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_array("gemma4-assistant.attention.head_count_kv", [local_kv] * (LAYERS - 1) + [global_kv])
    writer.add_uint32("gemma4-assistant.attention.key_length", GLOBAL)
    writer.add_uint32("gemma4-assistant.attention.key_length_swa", LOCAL)
    writer.add_uint32("gemma4-assistant.attention.sliding_window", window)
    writer.add_uint32("gemma4-assistant.attention.shared_kv_layers", LAYERS)
    writer.add_array("gemma4-assistant.attention.sliding_window_pattern", [True] * (LAYERS - 1) + [False])
    writer.add_context_length(262144)
    writer.add_float32("gemma4-assistant.rope.freq_base", 1e6)
    writer.add_float32("gemma4-assistant.rope.freq_base_swa", 1e4)

    def matrix(name, rows, columns):
        """Blocks of 32 numbers: an f16 scale and codes, of about unit gain."""
        n = rows * columns // 32
        levels = 4.6 if options.type == "q4_0" else 73.0
        scales = np.full((n, 1), 1 / levels / np.sqrt(columns), dtype=np.float16).view(np.uint8)
        codes = random.integers(0, 256, (n, code_bytes), dtype=np.uint8)
        data = np.hstack([scales, codes]).reshape(rows, -1)
        writer.add_tensor(name, data, raw_dtype=dtype)

    def ones(name, n):
        writer.add_tensor(name, np.ones(n, dtype=np.float32))

    matrix("token_embd.weight", options.vocabulary, width)
    matrix("nextn.pre_projection.weight", width, 2 * target)
    matrix("nextn.post_projection.weight", target, width)
    ones("output_norm.weight", width)
    for layer in range(LAYERS):
        head = GLOBAL if layer == LAYERS - 1 else LOCAL
        block = f"blk.{layer}."
        matrix(block + "attn_q.weight", heads * head, width)
        matrix(block + "attn_output.weight", width, heads * head)
        matrix(block + "ffn_gate.weight", feed_forward, width)
        matrix(block + "ffn_up.weight", feed_forward, width)
        matrix(block + "ffn_down.weight", width, feed_forward)
        ones(block + "attn_q_norm.weight", head)
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            ones(f"{block}{norm}.weight", width)
        ones(block + "layer_output_scale.weight", 1)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
