#!/usr/bin/env python3
"""carat beside llama.cpp: same file, same threads, in turn, medians with the range.

    pip install llama-cpp-python      # CC=clang-16 CXX=clang++-16 builds it for this very processor
    cargo build --release
    bench/compare.py MODEL.gguf [MODEL.gguf ...] --prefill 512 --depth 0,4096 --rounds 5 --json rounds.jsonl
    bench/compare.py MODEL.gguf --batch 4,8,16 --verify 2,4,8

For a lower instruction set, hold carat to it and build llama.cpp for it in a Python of its own:

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=OFF" \\
        CC=clang-16 CXX=clang++-16 avx2/bin/pip install --no-binary llama-cpp-python llama-cpp-python
    bench/compare.py MODEL.gguf --isa avx2 --llama-python avx2/bin/python

Each round runs carat, then llama.cpp, each in a process of its own, so that neither holds memory while the other
runs. The file is read before each of them, so that both find it in the page cache, which llama.cpp's copy of a large
model drives out. Leave the machine alone meanwhile: the
report says what share of it other programs took.
"""

import argparse
import ctypes
import json
import os
import resource
import statistics
import struct
import subprocess
import sys
import time

import llama_cache


def numbers(text):
    return [int(part) for part in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--carat", default="target/release/carat", help="the carat to measure")
    parser.add_argument("--isa", help="the instruction set that carat is held to (default: the best there is)")
    parser.add_argument("--llama-python", default=sys.executable, metavar="PYTHON",
                        help="the Python whose llama_cpp to measure (default: this one); for a llama.cpp built for a "
                             "lower instruction set")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prefill", type=numbers, default=[512], help="prompt lengths (default 512)")
    parser.add_argument("--decode", type=int, default=32, help="tokens decoded at each depth (default 32); 0 for none")
    parser.add_argument("--batch", type=numbers, default=[],
                        help="sequences decoded together, at depth 0 (carat chooses each token too, llama.cpp none)")
    parser.add_argument("--verify", type=numbers, default=[],
                        help="tokens of one sequence in one pass, all their logits wanted, as when a draft is checked")
    parser.add_argument("--depth", type=numbers, default=[0], help="tokens in the cache before decoding (default 0)")
    parser.add_argument("--copied-cache", type=int, metavar="WINDOW",
                        help="do not let llama.cpp compute the tokens before decoding, but fill its cache with copies of "
                             "a short prompt's rows; local layers get WINDOW of them (see llama_cache.py)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="append each round's figures here")
    parser.add_argument("--llama-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.decode < 1 and (options.batch or options.verify):
        parser.error("--batch and --verify take as many passes as --decode says: give at least 1")
    return options


def measure_llama(options):
    """One round of llama.cpp in this process: {case: tokens per second}, and memory."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    begin = time.perf_counter()
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(options.models[0].encode(), model_params)
    if not model:
        sys.exit(f"llama.cpp cannot load {options.models[0]}")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = max(options.prefill + [depth + options.decode for depth in options.depth]) + 8
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = options.threads
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        sys.exit("llama.cpp has no memory for the context")
    load = time.perf_counter() - begin

    def feed(n, at_once):
        tokens = (llama_cpp.llama_token * n)(*(100 + i % 1000 for i in range(n)))
        for first in range(0, n, at_once):
            part = min(at_once, n - first)
            pointer = ctypes.cast(ctypes.byref(tokens, first * ctypes.sizeof(llama_cpp.llama_token)),
                                  ctypes.POINTER(llama_cpp.llama_token))
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(pointer, part)):
                sys.exit("llama.cpp failed to decode")
        llama_cpp.llama_synchronize(context)

    def clear():
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)

    def timed(n, at_once):
        start = time.perf_counter()
        feed(n, at_once)
        return n / (time.perf_counter() - start)

    feed(16, 16)
    rates = {}
    for n in options.prefill:
        clear()
        rates[f"prefill {n}"] = timed(n, 512)
    for depth in options.depth if options.decode else []:
        clear()
        if depth and options.copied_cache:
            feed(llama_cache.SHORT, llama_cache.SHORT)
            llama_cache.fill(llama_cpp, context, depth, options.copied_cache)
        elif depth:
            feed(depth, 512)
        rates[f"decode at {depth}"] = timed(options.decode, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    llama_cpp.llama_free(context)

    def timed_passes(n, n_sequences):
        """Tokens a second in passes of `n` tokens: one of each of as many sequences, or all of one sequence."""
        params.n_ctx = 256 * n_sequences + n * (options.decode + 1)
        params.n_seq_max = n_sequences
        context = llama_cpp.llama_init_from_model(model, params)
        if not context:
            sys.exit("llama.cpp has no memory for the context")
        batch = llama_cpp.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for step in range(options.decode + 1):
            if step == 1:
                start = time.perf_counter()
            for i in range(n):
                batch.token[i] = 100 + (n * step + i) % 1000
                batch.pos[i] = step if n_sequences > 1 else n * step + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = i if n_sequences > 1 else 0
                batch.logits[i] = 1
            if llama_cpp.llama_decode(context, batch):
                sys.exit("llama.cpp failed to decode")
            llama_cpp.llama_synchronize(context)
        seconds = time.perf_counter() - start
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return n * options.decode / seconds

    for n in options.batch:
        rates[f"{n} sequences"] = timed_passes(n, n)
    for n in options.verify:
        rates[f"{n} tokens a pass"] = timed_passes(n, 1)
    print(json.dumps({"rates": rates, "load_s": load, "peak_bytes": peak}))


def joined(of):
    return ",".join(map(str, of))


def run_llama(options, model):
    command = [options.llama_python, __file__, model, "--llama-only", "--threads", str(options.threads),
               "--decode", str(options.decode), "--prefill", joined(options.prefill), "--depth", joined(options.depth)]
    if options.copied_cache:
        command += ["--copied-cache", str(options.copied_cache)]
    for name in ["batch", "verify"]:
        if of := getattr(options, name):
            command += [f"--{name}", joined(of)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def carat_bench(options, model, *more):
    command = [options.carat, "bench", model, "--json", "--threads", str(options.threads), *more]
    if options.isa:
        command += ["--isa", options.isa]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def run_carat(options, model):
    report = carat_bench(options, model, "--repeat", "1", "--decode", str(options.decode),
                         "--prefill", joined(options.prefill), "--depth", joined(options.depth))
    rates = {}

    def take(results, case):
        for result in results:
            rates[case.format(**result)] = result["tok_per_s"]["median"]

    take([result for result in report["results"] if result["kind"] == "prefill"], "prefill {n_tokens}")
    take([result for result in report["results"] if result["kind"] == "decode"], "decode at {depth}")
    if options.batch:
        # The median of three, since carat's time depends on what it says.
        batches = carat_bench(options, model, "--repeat", "3", "--decode", str(options.decode), "--prefill", "0",
                              "--batch", joined(options.batch))
        take(batches["results"], "{n_sequences} sequences")
    if options.verify:
        passes = carat_bench(options, model, "--repeat", str(options.decode), "--decode", "0", "--prefill", "0",
                             "--verify", joined(options.verify))
        take(passes["results"], "{n_tokens} tokens a pass")
    return {"rates": rates, "load_s": report["load_ms"] / 1e3, "peak_bytes": report["peak_rss_bytes"]}


def busy_seconds():
    """Processor seconds of all programs since the start, and of our finished children."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:]]
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = os.sysconf("SC_CLK_TCK")
    return (sum(fields) - fields[3] - fields[4]) / ticks, children.ru_utime + children.ru_stime


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def read(model):
    with open(model, "rb") as file:
        while file.read(64 << 20):
            pass


def compare(options, model):
    programs = {"carat": run_carat, "llama.cpp": run_llama}
    rounds = {name: [] for name in programs}
    start, (all_before, own_before) = time.monotonic(), busy_seconds()
    for number in range(options.rounds):
        for name, run in programs.items():
            read(model)
            print(f"\r{os.path.basename(model)}: round {number + 1} of {options.rounds}, {name}    ",
                  end="", file=sys.stderr, flush=True)
            rounds[name].append(run(options, model))
            if options.json:
                with open(options.json, "a", encoding="utf-8") as file:
                    line = {"model": os.path.basename(model), "program": name, "round": number, **rounds[name][-1]}
                    print(json.dumps(line), file=file)
    print(file=sys.stderr)
    all_after, own_after = busy_seconds()
    capacity = (time.monotonic() - start) * os.cpu_count()
    others = max(0.0, (all_after - all_before) - (own_after - own_before)) / capacity

    ours, theirs = rounds["carat"], rounds["llama.cpp"]
    print(f"\n{os.path.basename(model)}, {options.threads} threads, {options.rounds} rounds in turn, "
          f"other programs took {100 * others:.1f} % of the machine\n")
    print("| tokens a second | carat | llama.cpp | ratio |\n|---|---|---|---|")
    for case in theirs[0]["rates"]:
        a, b = ([entry["rates"][case] for entry in entries] for entries in (ours, theirs))
        digits = 1 if statistics.median(b) < 100 else 0
        ratio = statistics.median(a) / statistics.median(b)
        print(f"| {case} | {spread(a, digits)} | {spread(b, digits)} | {ratio:.2f} |")
    for label, key, unit, digits in [("load, s", "load_s", 1, 2), ("peak memory, GB", "peak_bytes", 1e9, 2)]:
        a, b = ([entry[key] / unit for entry in entries] for entries in (ours, theirs))
        print(f"| {label} | {spread(a, digits)} | {spread(b, digits)} | |")


def main():
    options = arguments()
    if options.llama_only:
        measure_llama(options)
        return
    for model in options.models:
        compare(options, model)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError, struct.error, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
