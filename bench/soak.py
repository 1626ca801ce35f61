#!/usr/bin/env python3
"""Minutes of clients that connect, ask, cancel, fall silent and send rubbish: what the server holds must not grow.

    carat serve MODEL --port 8080 --ctx 2048 --parallel 16 --cache-memory 300MB --log error &
    bench/soak.py http://127.0.0.1:8080 --pid $! --minutes 10 --clients 32

Every answer that comes to its end is checked: its form where a grammar binds it, its number of tokens, and for greedy
answers that they begin as they do alone. Afterwards nothing may run or wait, and the process may not hold more than in the
first quarter by more than a tenth and what the caches have grown by, which is told too: after minutes they are full. Then
the model is unloaded, which must give back at least what its caches held, and answers once more as it did at first. Ends
with 1 and the reasons if something is wrong. Only the standard library.
"""

import argparse
import asyncio
import collections
import json
import random
import re
import sys
import time
import urllib.parse
import urllib.request

PROMPTS = [f"Question {i}: name a river of Europe and say where it ends. Answer:" for i in range(24)]
LONG = "The tide comes in and the tide goes out. " * 40
BUSY = ("carat_sequences_running", "carat_jobs_waiting")
TALLY, WRONG = collections.Counter(), []


async def connect(address):
    return await asyncio.wait_for(asyncio.open_connection(*address), 30)


async def send(address, path, body):
    """Status and body of an answer."""
    reader, writer = await connect(address)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + data)
        answer = await asyncio.wait_for(reader.read(-1), 300)
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else 0, rest
    finally:
        writer.close()


def check(is_right, what):
    if not is_right:
        WRONG.append(what)


async def greedy(address, dice, expected):
    prompt = dice.choice(PROMPTS)
    status, body = await send(address, "/v1/completions", {"prompt": prompt, "max_tokens": 24, "temperature": 0})
    if status == 200:
        choice = json.loads(body)["choices"][0]
        # Where a cached beginning was rounded otherwise, two words of nearly the same probability may change places later.
        check(choice["text"][:6] == expected[prompt][:6], ("greedy", prompt, choice["text"], expected[prompt]))
    return status


async def ask(address, prompt):
    _, body = await send(address, "/v1/completions", {"prompt": prompt, "max_tokens": 24, "temperature": 0})
    return json.loads(body)["choices"][0]["text"]


async def bound(address, dice, expected):
    body = {"messages": [{"role": "user", "content": dice.choice(PROMPTS)}], "max_tokens": 40, "guided_regex": "[a-z]{3,9} [0-9]{2}"}
    status, body = await send(address, "/v1/chat/completions", body)
    if status == 200:
        text = json.loads(body)["choices"][0]["message"]["content"]
        check(re.fullmatch("[a-z]{3,9} [0-9]{2}", text), ("bound", text))
    return status


async def counted(address, dice, expected):
    n = dice.randint(1, 20)
    body = {"prompt": LONG[: dice.randrange(1, len(LONG))], "max_tokens": n, "n": 2, "logit_bias": {"1": -100, "106": -100}}
    status, body = await send(address, "/v1/completions", body)
    if status == 200:
        check(json.loads(body)["usage"]["completion_tokens"] == 2 * n, ("counted", n, body))
    return status


async def vector(address, dice, expected):
    status, body = await send(address, "/v1/embeddings", {"input": [dice.choice(PROMPTS), LONG[: dice.randrange(1, 900)]]})
    if status == 200:
        data = json.loads(body)["data"]
        check(len(data) == 2 and abs(sum(x * x for x in data[0]["embedding"]) - 1) < 1e-3, ("vector", body[:200]))
    return status


async def leave(address, dice, expected):
    """Leaves in the middle of a stream, or before its first token."""
    reader, writer = await connect(address)
    data = json.dumps({"prompt": LONG, "max_tokens": 500, "stream": True, "logit_bias": {"1": -100, "106": -100}}).encode()
    writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    for _ in range(dice.randrange(0, 12)):
        await asyncio.wait_for(reader.readline(), 300)
    writer.transport.abort()
    return "left"


async def silent(address, dice, expected):
    """Says half a request, waits, goes."""
    reader, writer = await connect(address)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{\"prompt\""[: dice.randrange(0, 80)])
    await asyncio.sleep(dice.random() * 5)
    writer.transport.abort()
    return "silent"


async def rubbish(address, dice, expected):
    path = dice.choice(["/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/embeddings", "/v1/responses", "/nowhere", "/tokenize"])
    kinds = [
        lambda: dice.randbytes(dice.randrange(0, 3000)),
        lambda: json.dumps({"messages": dice.choice([None, 3, [], [[]], [{}], "x", [{"role": "wizard"}]]), "max_tokens": dice.choice([-1, 0, "x", 1e99])}).encode(),
        lambda: b"[" * dice.randrange(1, 100_000),
        lambda: json.dumps({"prompt": "x", "input": "x" * 200_000, "content": "y", "temperature": 1e9}).encode(),
    ]
    status, _ = await send(address, path, dice.choice(kinds)())
    check(status < 500, ("rubbish", path, status))
    return f"rubbish {status}"


async def noise(address, dice, expected):
    """No HTTP at all."""
    reader, writer = await connect(address)
    writer.write(dice.randbytes(dice.randrange(1, 20_000)))
    try:
        await asyncio.wait_for(reader.read(1000), 10)
    except (asyncio.TimeoutError, ConnectionError):
        pass
    writer.transport.abort()
    return "noise"


KINDS = [greedy] * 5 + [bound] * 3 + [counted] * 3 + [vector] + [leave] * 4 + [silent] * 2 + [rubbish] * 3 + [noise]


async def client(address, deadline, seed, expected):
    dice = random.Random(seed)
    while time.time() < deadline:
        kind = dice.choice(KINDS)
        try:
            told = await kind(address, dice, expected)
        except (ConnectionError, asyncio.TimeoutError, OSError) as error:
            told = type(error).__name__
            check(kind in (silent, noise, leave), (kind.__name__, repr(error)))
        check(not (isinstance(told, int) and told >= 500), (kind.__name__, told))
        TALLY[f"{kind.__name__} {told}" if isinstance(told, int) else told] += 1


def rss_mb(pid):
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    # Mapped weights come and go with what else the machine does.
    return int(fields["RssAnon"].split()[0]) / 1024


async def watch(address, pid, deadline, memory):
    while time.time() < deadline:
        memory.append((rss_mb(pid), await asyncio.to_thread(gauge, address, "carat_cache_bytes") / 2**20))
        await asyncio.sleep(1)


def gauge(address, name):
    text = urllib.request.urlopen(f"http://{address[0]}:{address[1]}/metrics", timeout=60).read().decode()
    return sum(int(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))


async def unload(address, pid, expected):
    """Sends the model away and asks it again."""
    before, held = rss_mb(pid), gauge(address, "carat_cache_bytes") / 2**20
    model = json.loads(urllib.request.urlopen(f"http://{address[0]}:{address[1]}/v1/models", timeout=60).read())["data"][0]["id"]
    status, body = await send(address, "/api/generate", {"model": model, "keep_alive": 0})
    check(status == 200, ("unload", status, body))
    until = time.time() + 20
    while time.time() < until and rss_mb(pid) > before - 0.9 * held:
        time.sleep(0.1)
    check(not gauge(address, "carat_model_loaded"), ("still loaded", model))
    after = rss_mb(pid)
    print(f"unloaded: {before:.0f} MB with caches of {held:.0f} became {after:.0f} MB")
    check(after <= before - 0.9 * held, ("not given back", before, held, after))
    for prompt in PROMPTS[:4]:
        check((await ask(address, prompt))[:6] == expected[prompt][:6], ("after unloading", prompt))


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, required=True, help="of the server")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    given = parser.parse_args()
    url = urllib.parse.urlparse(given.url)
    address = (url.hostname, url.port or 80)
    expected = {prompt: await ask(address, prompt) for prompt in PROMPTS}
    # What is built once (grammars, towers) is no leak: every kind is met before memory is looked at.
    dice = random.Random("first")
    for kind in (bound, counted, vector, rubbish):
        await kind(address, dice, expected)
    deadline, memory = time.time() + 60 * given.minutes, []
    clients = [client(address, deadline, i, expected) for i in range(given.clients)]
    await asyncio.gather(watch(address, given.pid, deadline, memory), *clients)
    idle = time.time() + 60
    while time.time() < idle and any(gauge(address, name) for name in BUSY):
        time.sleep(0.2)
    for name in BUSY:
        check(gauge(address, name) == 0, (name, gauge(address, name)))
    quarter = max(1, len(memory) // 4)
    first, last = max(memory[:quarter]), max(memory[-quarter:])
    grown = max(0, last[1] - first[1])
    check(last[0] <= 1.1 * first[0] + grown + 8, ("memory", first, last))
    await unload(address, given.pid, expected)
    for what, n in sorted(TALLY.items()):
        print(f"{n:8} {what}")
    print(f"{sum(TALLY.values())} requests in {given.minutes} minutes")
    print(f"most memory: {first[0]:.0f} MB in the first quarter (caches {first[1]:.0f}), {last[0]:.0f} MB in the last (caches {last[1]:.0f})")
    if WRONG:
        print(*WRONG[:20], sep="\n")
        sys.exit(f"{len(WRONG)} things are wrong")
    print("all is well")


asyncio.run(main())
