"""Measures the gateway: CPU a request, CPU a stream event, and added latency, with a mock provider on loopback.

    cargo build --release -p carat-gateway --examples
    python3 bench/gateway/run.py [--requests N] [--held N] [--bare-only]

Mock, gateway and load generator share the machine. CPU is what the kernel counted for the gateway's process (user and
system) over a run, divided by requests: it is little disturbed by who else runs. Latency is compared with asking the
mock directly in the same minute. Streams that are held say one event every ten seconds. `full` is the gateway with a key, limits, a budget, a price, the ledger and metrics.
"""

import argparse
import json
import os
import pathlib
import resource
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "examples"
PAD = "The quick brown fox jumps over the lazy dog. " * 4


def body(model, stream=False, prompt=PAD):
    messages = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": prompt}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": 64, "stream": stream}, separators=(",", ":"))


def start(*command):
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip().removeprefix("http://").removesuffix("/v1")


def tree(pid):
    """The process and all that it started."""
    children = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    pids = [int(child) for path in children for child in path.read_text().split()]
    return [pid] + [each for child in pids for each in tree(child)]


def cpu_s(pid):
    return sum(cpu_of(each) for each in tree(pid))


def cpu_of(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024


class Bench:
    def __init__(self, folder, n):
        self.folder, self.n = folder, n

    def load(self, address, mode, a, b, text, key="", headers=""):
        path = self.folder / "body.json"
        path.write_text(text)
        command = [BIN / "bench_load", address, mode, a, b, path, key or "-", headers]
        out = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
        return json.loads(out)

    def cpu(self, pid, address, connections, n, text, key):
        """CPU milliseconds a request, and what the generator saw."""
        before = cpu_s(pid)
        seen = self.load(address, "closed", connections, n, text, key)
        assert seen["bad"] == 0, seen
        return (cpu_s(pid) - before) * 1000 / n, seen

    def gateway(self, name, address, pid, key, mock):
        start_mib = memory_mib(pid)
        self.load(address, "closed", 16, 2000, body("m/ok"), key)
        print(f"## {name}: {start_mib:.1f} MiB idle")
        for connections in (16, 64):
            runs = [self.cpu(pid, address, connections, self.n, body("m/ok"), key) for _ in range(3)]
            ms, seen = sorted(runs, key=lambda run: run[0])[1]
            print(f"whole answers, {connections} connections: {ms:.4f} CPU ms a request, {seen['per_s']} requests/s")
        runs = []
        for _ in range(3):
            one, _ = self.cpu(pid, address, 16, 2000, body("m/events=4", stream=True), key)
            many, _ = self.cpu(pid, address, 16, 2000, body("m/events=68", stream=True), key)
            runs.append((many - one) * 1000 / 64)
        print(f"streams: {sorted(runs)[1]:.2f} CPU us an event")
        long = body("m/ok", prompt="x" * 100_000)
        print(f"100 kB prompts: {self.cpu(pid, address, 4, 2000, long, key)[0]:.4f} CPU ms a request")
        for rate in (100, 1000):
            pairs = []
            for _ in range(3):
                direct = self.load(mock, "open", rate, 3, body("ok"))
                through = self.load(address, "open", rate, 3, body("m/ok"), key)
                pairs.append((through["p50_ms"] - direct["p50_ms"], through["p99_ms"] - direct["p99_ms"]))
            p50, p99 = sorted(pairs)[1]
            print(f"{rate} requests/s: p50 +{p50:.3f} ms, p99 +{p99:.3f} ms")
        print(f"loaded: {memory_mib(pid):.1f} MiB")

    def held(self, n, config):
        """The memory that open streams take in a gateway that has just been started."""
        process, address = start(BIN / "bench_gateway", config)
        try:
            idle_mib = memory_mib(process.pid)
            text = body("m/events=1000;gap=10000", stream=True)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(text)}"
            host, port = address.split(":")
            streams = [socket.create_connection((host, int(port))) for _ in range(n)]
            for stream in streams:
                stream.sendall(f"{head}\r\n\r\n{text}".encode())
            for stream in streams:
                assert stream.recv(4096).startswith(b"HTTP/1.1 200")
            kib = (memory_mib(process.pid) - idle_mib) * 1024 / n
            # All go on.
            for stream in streams:
                assert stream.recv(4096)
                stream.close()
            print(f"## {n} streams held: {idle_mib:.1f} MiB idle, {kib:.1f} KiB a stream")
        finally:
            process.kill()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--held", type=int, default=5_000)
    parser.add_argument("--bare-only", action="store_true")
    options = parser.parse_args()
    # A stream takes two files in the gateway.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(pathlib.Path(folder), options.requests)
        mock_process, mock = start(BIN / "mock_provider", 0)
        processes = [mock_process]
        try:
            text = f'listen = "127.0.0.1:0"\n[providers.m]\nbase-url = "http://{mock}/v1"\nkey = "sk-mock"\n'
            for name, more in [("bare", ""), ("full", FULL)][: 1 if options.bare_only else 2]:
                path = pathlib.Path(folder) / f"{name}.toml"
                path.write_text(text + more.replace("FOLDER", folder))
                key = ""
                if more:
                    key = subprocess.run([str(BIN / "bench_key"), f"{folder}/l.db"], capture_output=True, text=True, check=True).stdout.strip()
                begun = time.monotonic()
                process, address = start(BIN / "bench_gateway", path)
                print(f"ready after {(time.monotonic() - begun) * 1000:.0f} ms")
                processes.append(process)
                bench.gateway(name, address, process.pid, key, mock)
            bench.held(options.held, pathlib.Path(folder) / "bare.toml")
        finally:
            for process in processes:
                process.kill()


FULL = """
[ledger]
path = "FOLDER/l.db"
[prices."m/ok"]
input = 0.15
output = 0.6
[prices."m/events=4"]
input = 0.15
output = 0.6
[prices."m/events=68"]
input = 0.15
output = 0.6
"""

if __name__ == "__main__":
    main()
