#!/usr/bin/env python3
"""Guessing ahead from the text itself: carat with and without, and llama.cpp with and without its n-gram lookup.

    pip install llama-cpp-python
    cargo build --release
    bench/draft.py MODEL.gguf --text war_and_peace.txt --problems gsm8k_chat.jsonl --rounds 3 --json rounds.jsonl

Three tasks that repeat much of their prompt (copying a text with corrections, picking sentences of it, writing facts
of it as JSON) and free prose, which does not. The model is a base model: each task is shown by examples first. Tasks
are greedy, prose is drawn at temperature 1 with a seed. Every program runs alone, in turn; decode speeds are without
the prompt. Of llama.cpp, `llama_cpp.llama_speculative.LlamaPromptLookupDecoding` is measured as it comes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("--text", required=True, help="a novel as plain text")
    parser.add_argument("--problems", required=True, help="JSON lines with messages, as in a set for tuning")
    parser.add_argument("--carat", default="target/release/carat", help="the carat to measure")
    parser.add_argument("--llama-python", default=sys.executable, metavar="PYTHON", help="the Python that has llama_cpp")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer (default 128)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--guesses", type=int, default=10, help="llama.cpp's num_pred_tokens (default 10, its own)")
    parser.add_argument("--json", metavar="FILE", help="append each round's figures here")
    parser.add_argument("--llama-only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def tasks(options):
    """{name: (prompt, temperature)}"""
    with open(options.text, encoding="utf-8") as file:
        novel = file.read(60000)[20000:]
    parts = [part.replace("\n", " ").strip() for part in novel.split("\n\n")]
    parts = [part for part in parts if 400 < len(part) < 900]
    with open(options.problems, encoding="utf-8") as file:
        rows = [json.loads(line)["messages"] for line in file][:6]

    def wrong(text):
        return text.replace(" the ", " teh ").replace(" and ", " adn ")

    copy = "".join(f"Text with mistakes: {wrong(part)}\nThe same text without mistakes: {part}\n\n" for part in parts[:2])
    copy += f"Text with mistakes: {wrong(parts[2])}\nThe same text without mistakes:"

    def sentences(text):
        return [sentence.strip() + "." for sentence in text.split(".") if len(sentence) > 30]

    def picked(text):
        return "".join(f"- {sentence}\n" for sentence in sentences(text)[:3])

    pick = "".join(f"Text: {part}\nIts sentences as a list:\n{picked(part)}\n" for part in parts[3:5])
    pick += f"Text: {parts[5]} {parts[6]}\nIts sentences as a list:\n-"
    facts = ""
    for i, (question, answer) in enumerate(rows):
        facts += f"Problem: {question['content']}\nAs JSON: "
        if i + 1 < len(rows):
            number = answer["content"].rsplit(" ", 1)[-1].rstrip(".")
            whole = {"problem": question["content"], "answer": number, "kind": "arithmetic"}
            facts += json.dumps(whole, indent=1) + "\n\n"
    return {"copy": (copy, 0), "pick": (pick, 0), "json": (facts, 0), "prose": (parts[7][:300], 1)}


def measure_llama(options):
    """One round of llama.cpp in this process: {task: {plain, drafted}} in tokens per second."""
    import llama_cpp
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    found = {}
    for kind in ["plain", "drafted"]:
        draft = LlamaPromptLookupDecoding(num_pred_tokens=options.guesses) if kind == "drafted" else None
        # With guesses it keeps the logits of every token, but only has room for those of one batch.
        model = llama_cpp.Llama(options.model, n_ctx=2048, n_batch=2048, n_threads=options.threads,
                                n_threads_batch=options.threads, draft_model=draft, verbose=False)
        for name, (prompt, temperature) in tasks(options).items():
            times = []
            model.reset()
            stream = model.generate(model.tokenize(prompt.encode()), temp=float(temperature), top_k=64, top_p=0.95,
                                    repeat_penalty=1.0)
            for _ in stream:
                times.append(time.perf_counter())
                if len(times) == options.tokens:
                    break
            rate = (len(times) - 1) / (times[-1] - times[0])
            found.setdefault(name, {})[kind] = rate
        del model
    print(json.dumps(found))


def measure_carat(options):
    """The same of carat, with what was guessed."""
    found = {}
    for name, (prompt, temperature) in tasks(options).items():
        for kind in ["plain", "drafted"]:
            command = [options.carat, "run", options.model, "--raw", "--json", "--threads", str(options.threads), "-n",
                       str(options.tokens), "--temperature", str(temperature), "--seed", "7", "--ctx", "4096"]
            command += ["--no-draft"] if kind == "plain" else []
            answer = json.loads(subprocess.run(command, input=prompt, capture_output=True, text=True, check=True).stdout)
            row = found.setdefault(name, {})
            row[kind] = answer["timings"]["decode_tok_per_s"]
            if kind == "plain":
                text = answer["text"]
            else:
                row["same"] = text == answer["text"]
                row["guessed"] = sum(answer["drafts"]["drafted"])
                row["right"] = sum(answer["drafts"]["accepted"])
    return found


def main():
    options = arguments()
    if options.llama_only:
        measure_llama(options)
        return
    rounds = []
    for _ in range(options.rounds):
        carat = measure_carat(options)
        command = [options.llama_python, os.path.abspath(__file__), options.model, "--text", options.text, "--problems",
                   options.problems, "--threads", str(options.threads), "--tokens", str(options.tokens), "--guesses",
                   str(options.guesses), "--llama-only"]
        llama = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        rounds.append({"carat": carat, "llama": llama})
        if options.json:
            with open(options.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(rounds[-1]) + "\n")
    print("| task | carat | with guesses | times | right of guessed | llama.cpp | with lookup | times |\n|---|---|---|---|---|---|---|---|")
    for name in rounds[0]["carat"]:
        def middle(program, kind):
            return statistics.median(one[program][name][kind] for one in rounds)

        carat, drafted = middle("carat", "plain"), middle("carat", "drafted")
        llama, looked_up = middle("llama", "plain"), middle("llama", "drafted")
        last = rounds[-1]["carat"][name]
        same = "" if all(one["carat"][name]["same"] for one in rounds) else " (another text)"
        print(f"| {name}{same} | {carat:.1f} | {drafted:.1f} | {drafted / carat:.2f} | {last['right']} of {last['guessed']} "
              f"| {llama:.1f} | {looked_up:.1f} | {looked_up / llama:.2f} |")


if __name__ == "__main__":
    main()
