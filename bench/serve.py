#!/usr/bin/env python3
"""Throughput and latency of a server that speaks OpenAI's completions, at 1, 4, 16 and 64 clients.

    carat serve MODEL --port 8080 --ctx 2048 --parallel 64 --log warn &
    bench/serve.py http://127.0.0.1:8080 --name carat --json carat.json
    bench/serve.py http://127.0.0.1:8081 --name llama.cpp --json llama.json
    bench/serve.py --plot serve.svg carat.json llama.json

Each client sends one request after the other: a prompt of 128 token ids of its own (so that no prefix cache helps), an
answer of 128 tokens as a stream. Told are tokens per second over all clients, the time to the first token and the time
between tokens (p50, p99). `--overhead` measures what everything beside the model costs: a request that is refused, and an
answer of one token over what the engine took for it. `--idle N --pid PID` measures the memory of streams that wait (serve
with `--parallel 1 --queue 5000`). With `--clients` and nothing behind it only these are measured.
`--prefix N` asks two questions behind the same N tokens and tells what the second one saves; `--gap N` tells the worst
gap between tokens of 8 streams while a prompt of N tokens is computed, beside the undisturbed one.

Only the standard library; sockets are read by hand, so that the generator takes little of the machine it shares.
"""

import argparse
import asyncio
import json
import math
import random
import socket
import statistics
import time
import urllib.parse
import urllib.request

CLIENTS = [1, 4, 16, 64]
N_IN, N_OUT = 128, 128


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def post(address, path, body, on_event):
    """Sends a request; `on_event` gets the time of each event of a streamed answer. Returns the status."""
    reader, writer = await asyncio.open_connection(*address)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {address[0]}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    try:
        writer.write(head.encode() + data)
        status = int((await reader.readline()).split()[1])
        pending = b""
        while chunk := await reader.read(65536):
            *lines, pending = (pending + chunk).split(b"\n")
            now = time.perf_counter()
            for line in lines:
                if line.startswith(b"data: {") and b'"text":""' not in line:
                    on_event(now)
        return status
    finally:
        # Who leaves early must not keep the server busy for those after.
        writer.close()


async def client(address, model, deadline, seed, results):
    dice = random.Random(str(seed))
    while time.perf_counter() < deadline:
        body = {
            "model": model, "prompt": [2] + [dice.randrange(1000, 200_000) for _ in range(N_IN - 1)], "stream": True,
            "max_tokens": N_OUT, "temperature": 0, "ignore_eos": True, "logit_bias": {"1": -100, "106": -100},
        }
        result = {"started": time.perf_counter(), "times": [], "n_tokens": 0}
        results.append(result)

        def on_event(now):
            result["times"].append(now)
            result["n_tokens"] += 1

        status = await post(address, "/v1/completions", body, on_event)
        if status != 200 or not result["times"]:
            raise SystemExit(f"the server answered {status} with {len(result['times'])} events")
        # An event may bring several tokens.
        result["n_tokens"] = N_OUT


async def measure(address, model, n_clients, seconds, within):
    results = []
    started = time.perf_counter()
    deadline = started + seconds
    clients = [client(address, model, deadline, (n_clients, i, started), results) for i in range(n_clients)]
    try:
        await asyncio.wait_for(asyncio.gather(*clients), within)
    except asyncio.TimeoutError:
        pass
    now = time.perf_counter()
    # Who has heard nothing yet has waited at least until now.
    first = [(one["times"] or [now])[0] - one["started"] for one in results]
    gaps = [b - a for one in results for a, b in zip(one["times"], one["times"][1:])]
    return {
        "clients": n_clients, "requests": len(results), "seconds": now - started,
        "tok_per_s": sum(one["n_tokens"] for one in results) / (now - started),
        "first_ms_p50": 1e3 * statistics.median(first), "first_ms_p99": 1e3 * percentile(first, 0.99),
        "gap_ms_p50": 1e3 * statistics.median(gaps) if gaps else 0, "gap_ms_p99": 1e3 * percentile(gaps, 0.99) if gaps else 0,
    }


class Connection:
    """One kept connection, read without an event loop: the client's own share stays small."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request):
        """Seconds until the answer is whole, and its body."""
        started = time.perf_counter()
        self.socket.sendall(request)
        data = self.socket.recv(65536)
        while b"\r\n\r\n" not in data:
            data += self.socket.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += self.socket.recv(65536)
        return time.perf_counter() - started, body


def request_of(path, body):
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def overhead(address, n=1000):
    """Microseconds beside the model: of requests that are read, checked and refused, and of answers of one token over
    what the engine says that prefill and decode took."""
    connection = Connection(address)
    refused = request_of("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "temperature": 1000})
    answered = request_of("/api/generate", {"model": "default", "prompt": "The capital of France is", "stream": False, "options": {"num_predict": 1, "temperature": 0}})
    kinds = {"refused": [connection.ask(refused)[0] for _ in range(n)], "answered": []}
    for _ in range(n):
        took, body = connection.ask(answered)
        told = json.loads(body)
        if "error" in told:
            raise SystemExit(f"the server answered {told}")
        kinds["answered"].append(took - 1e-9 * (told["prompt_eval_duration"] + told["eval_duration"]))
    connection.socket.close()
    return {kind: {"us_p50": 1e6 * statistics.median(times), "us_p99": 1e6 * percentile(times, 0.99)} for kind, times in kinds.items()}


def request(address, path):
    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}{path}", timeout=60) as answer:
        return answer.read()


def anonymous_kb(pid):
    with open(f"/proc/{pid}/status") as file:
        return int(dict(line.split(":", 1) for line in file)["RssAnon"].split()[0])


def cache_kb(address):
    """What the caches of the model hold, by /metrics."""
    lines = request(address, "/metrics").decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("carat_cache_bytes")) / 1024


def idle(address, pid, n):
    """Kilobytes of a stream that waits: n of them behind one answer that goes on, whose own cache does not count."""

    def held_kb():
        return anonymous_kb(pid) - cache_kb(address)

    body = {"model": "default", "prompt": [2, 300, 301], "stream": True, "temperature": 0, "logit_bias": {"1": -100, "106": -100}}
    runs = Connection(address)
    runs.socket.sendall(request_of("/v1/completions", body | {"max_tokens": 1500}))
    runs.socket.recv(4096)
    rows, streams = [], []
    # The first round builds what all share; the others differ by when lists grow.
    for _ in range(6):
        before = held_kb()
        fresh = [Connection(address) for _ in range(n)]
        for stream in fresh:
            stream.socket.sendall(request_of("/v1/completions", body | {"max_tokens": 100}))
        for stream in fresh:
            head = stream.socket.recv(4096)
            if b" 200 " not in head.split(b"\r\n")[0] + b" ":
                raise SystemExit(f"a stream was refused; serve with --parallel 1 and a --queue of {6 * n + 1}: {head[:200]}")
        rows.append((held_kb() - before) / n)
        streams += fresh
    for stream in [runs, *streams]:
        stream.socket.close()
    return {"n": n, "kb": statistics.mean(rows[1:]), "rounds_kb": rows[1:], "first_kb": rows[0]}


def random_ids(n, seed):
    dice = random.Random(str(seed))
    return [2] + [dice.randrange(1000, 200_000) for _ in range(n - 1)]


async def stream(address, ids, n_out):
    """Times of an answer's tokens, the first counted from the request."""
    times = []
    body = {
        "prompt": ids, "stream": True, "max_tokens": n_out, "temperature": 0, "logit_bias": {"1": -100, "106": -100},
    }
    started = time.perf_counter()
    status = await post(address, "/v1/completions", body, times.append)
    if status != 200 or not times:
        raise SystemExit(f"the server answered {status} with {len(times)} events")
    return started, times


async def prefix(address, n):
    """Milliseconds to the first token of a prompt of n tokens, and of another one that begins with the same."""
    common = random_ids(n, time.time())
    rows = []
    for i in range(4):
        started, times = await stream(address, common + random_ids(30, i)[1:], 1)
        rows.append(1e3 * (times[0] - started))
    return {"n": n, "first_ms": rows[0], "next_ms": statistics.median(rows[1:])}


async def gap(address, n):
    """Worst gap, in milliseconds, of 8 streams alone and while a prompt of n tokens is computed."""
    streams = [asyncio.create_task(stream(address, random_ids(16, i), 1200)) for i in range(8)]
    await asyncio.sleep(6)
    begun = time.perf_counter()
    _, first = await stream(address, random_ids(n, time.time()), 1)
    ended = first[0]
    done = await asyncio.gather(*streams)
    gaps = [(b, b - a) for _, times in done for a, b in zip(times, times[1:])]
    calm = [g for at, g in gaps if begun - 4 < at < begun]
    busy = [g for at, g in gaps if begun < at < ended]
    return {
        "n": n, "calm_ms_p50": 1e3 * statistics.median(calm), "calm_ms_worst": 1e3 * max(calm),
        "busy_ms_p50": 1e3 * statistics.median(busy), "busy_ms_worst": 1e3 * max(busy), "prompt_s": ended - begun,
    }


def plot(path, files):
    """Latency over throughput, a line for each server."""
    runs = [json.load(open(file)) for file in files]
    width, height, edge = 640, 400, 60
    most_x = max(row["tok_per_s"] for run in runs for row in run["rows"])
    # Waits span decades, so their axis is logarithmic.
    waits = [row["first_ms_p99"] for run in runs for row in run["rows"]]
    low, high = math.floor(math.log10(min(waits))), math.ceil(math.log10(max(waits)))
    x = lambda value: edge + value / most_x * (width - 2 * edge)
    y = lambda value: height - edge - (math.log10(value) - low) / (high - low) * (height - 2 * edge)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{width}" height="{height}" fill="#fff"/>')
    for power in range(low, high + 1):
        at = y(10**power)
        told = f"{10**power} ms" if power < 3 else f"{10**power // 1000} s"
        parts.append(f'<path d="M{edge} {at:.1f}H{width - edge}" stroke="#ddd"/><text x="{edge - 6}" y="{at + 4:.1f}" text-anchor="end">{told}</text>')
    for rate in range(0, int(most_x) + 1, 100):
        parts.append(f'<path d="M{x(rate):.1f} {height - edge}v5" stroke="#888"/><text x="{x(rate):.1f}" y="{height - edge + 18}" text-anchor="middle">{rate}</text>')
    parts.append(f'<path d="M{edge} {edge}V{height - edge}H{width - edge}" fill="none" stroke="#888"/>')
    parts.append(f'<text x="{width / 2}" y="{height - 20}" text-anchor="middle">tokens per second, all clients together (clients beside the points)</text>')
    parts.append(f'<text x="{edge}" y="{edge - 12}">time to the first token, p99</text>')
    for run, colour in zip(runs, ["#c22", "#26a", "#282", "#a62"]):
        points = [(x(row["tok_per_s"]), y(row["first_ms_p99"]), row["clients"]) for row in run["rows"]]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/><text x="{a + 5:.1f}" y="{b - 5:.1f}">{n}</text>' for a, b, n in points]
        parts.append(f'<text x="{points[-1][0]:.1f}" y="{points[-1][1] + 16:.1f}" fill="{colour}">{run["name"]}</text>')
    with open(path, "w") as file:
        file.write("\n".join(parts) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("files", nargs="*", help="with --plot: what --json wrote")
    parser.add_argument("--name", default="server")
    parser.add_argument("--model", default="default")
    parser.add_argument("--seconds", type=float, default=20, help="of each number of clients")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="leave what is not answered after this, and count what was heard")
    parser.add_argument("--clients", type=int, nargs="*", default=CLIENTS)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--idle", type=int, metavar="N")
    parser.add_argument("--pid", type=int, help="of the server, for --idle")
    parser.add_argument("--prefix", type=int, metavar="N")
    parser.add_argument("--gap", type=int, metavar="N")
    parser.add_argument("--json")
    parser.add_argument("--plot")
    given = parser.parse_args()
    if given.plot:
        plot(given.plot, [given.url, *given.files])
        return
    url = urllib.parse.urlparse(given.url)
    address = (url.hostname, url.port or 80)
    run = {"name": given.name, "rows": []}
    if given.overhead:
        run["overhead"] = overhead(address)
        for kind, row in run["overhead"].items():
            print(f"{given.name}: {kind} {row['us_p50']:.0f} us (p50) {row['us_p99']:.0f} us (p99)", flush=True)
    if given.idle:
        run["idle"] = idle(address, given.pid, given.idle)
        print(f"{given.name}: {run['idle']['kb']:.1f} KB per idle stream ({run['idle']['first_kb']:.1f} in the first round)", flush=True)
    for name, probe in (("prefix", prefix), ("gap", gap)):
        if n := getattr(given, name):
            run[name] = asyncio.run(probe(address, n))
            print(given.name, name, {key: round(value, 1) for key, value in run[name].items()}, flush=True)
    for n in given.clients:
        row = asyncio.run(measure(address, given.model, n, given.seconds, given.within))
        run["rows"].append(row)
        print(
            f"{given.name}: {n:3} clients {row['tok_per_s']:8.1f} tok/s, first token {row['first_ms_p50']:.0f} ms (p50) "
            f"{row['first_ms_p99']:.0f} ms (p99), next {row['gap_ms_p50']:.1f} ms (p50) {row['gap_ms_p99']:.1f} ms (p99)",
            flush=True,
        )
    if given.json:
        with open(given.json, "w") as file:
            json.dump(run, file, indent=1)


if __name__ == "__main__":
    main()
