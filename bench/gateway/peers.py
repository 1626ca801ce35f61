"""Measures other gateways as run.py measures ours: the same mock, the same load, the same machine, one after another.

    cargo build --release -p carat-gateway --examples
    python3 bench/gateway/peers.py FOLDER [--requests N] [--only NAME]

FOLDER keeps what is installed: LiteLLM's proxy and TensorZero from PyPI, Portkey's gateway from npm, in the versions below.
They run bare: no keys of clients, no database, no logs of requests, since that is what all of them can do. TensorZero's
HTTP gateway is the one inside its Python package. CPU is that of the process and all that it started.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

from run import BIN, Bench, body, cpu_s, memory_mib, start, tree

LITELLM, TENSORZERO, PORTKEY = "1.106.2", "2026.6.0", "1.15.2"
MODELS = ["ok", "events=4", "events=68"]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def pip(folder, name, package):
    python = folder / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
    return python


def litellm(folder, work, mock):
    python = pip(folder, "litellm", f"litellm[proxy]=={LITELLM}")
    models = [
        {"model_name": model, "litellm_params": {"model": f"openai/{model}", "api_base": f"http://{mock}/v1", "api_key": "sk-mock"}}
        for model in MODELS
    ]
    config = work / "litellm.yaml"
    # Bare, as the others run: without a key of clients it must be told that this is meant.
    general = {"dangerously_permit_weak_or_unset_master_key": True}
    settings = {"model_list": models, "litellm_settings": {"telemetry": False}, "general_settings": general}
    config.write_text(json.dumps(settings))
    port = free_port()
    command = [python.parent / "litellm", "--config", config, "--port", str(port), "--host", "127.0.0.1"]
    return command, f"127.0.0.1:{port}", "", lambda model: model


TENSORZERO_STARTS = """
import sys, time, tensorzero
gateway = tensorzero._start_http_gateway(config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False)
print(gateway.base_url, flush=True)
time.sleep(1e9)
"""


def tensorzero(folder, work, mock):
    python = pip(folder, "tensorzero", f"tensorzero=={TENSORZERO}")
    text = "[gateway]\nobservability.enabled = false\n"
    for model in MODELS:
        text += f'[models."{model}"]\nrouting = ["m"]\n[models."{model}".providers.m]\ntype = "openai"\nmodel_name = "{model}"\n'
        text += f'api_base = "http://{mock}/v1/"\napi_key_location = "none"\n'
    config = work / "tensorzero.toml"
    config.write_text(text)
    return [python, "-c", TENSORZERO_STARTS, config], None, "", lambda model: f"tensorzero::model_name::{model}"


def portkey(folder, work, mock):
    package = folder / "portkey" / "node_modules" / "@portkey-ai" / "gateway"
    if not package.exists():
        (folder / "portkey").mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", f"@portkey-ai/gateway@{PORTKEY}"], cwd=folder / "portkey", check=True)
    port = free_port()
    headers = f"x-portkey-provider: openai\nx-portkey-custom-host: http://{mock}/v1"
    command = ["node", package / "build" / "start-server.js", f"--port={port}", "--headless"]
    return command, f"127.0.0.1:{port}", headers, lambda model: model


PEERS = {"tensorzero": tensorzero, "portkey": portkey, "litellm": litellm}


def wait(bench, address, text, headers):
    """Until it answers: some are long in starting."""
    for _ in range(600):
        try:
            bench.load(address, "closed", 1, 1, text, "sk-mock", headers)
            return
        except (subprocess.CalledProcessError, json.JSONDecodeError):
            time.sleep(0.25)
    raise SystemExit(f"{address} does not answer")


def measure(bench, name, pid, address, headers, model_of, mock, n):
    text = lambda model, **more: body(model_of(model), **more)
    # Whole answers and streams that were not what the mock had said.
    n_bad, n_asked = [0], [0]

    def cpu(connections, n, text):
        before = cpu_s(pid)
        seen = bench.load(address, "closed", connections, n, text, "sk-mock", headers)
        n_bad[0] += seen["bad"]
        n_asked[0] += n
        return (cpu_s(pid) - before) * 1000 / n, seen

    idle = sum(memory_mib(each) or 0 for each in tree(pid))
    cpu(16, max(n // 20, 50), text("ok"))
    print(f"## {name}: {idle:.1f} MiB idle")
    for connections in (16, 64):
        ms, seen = sorted((cpu(connections, n, text("ok")) for _ in range(3)), key=lambda run: run[0])[1]
        print(f"whole answers, {connections} connections: {ms:.4f} CPU ms a request, {seen['per_s']} requests/s", flush=True)
    some = max(n // 20, 50)
    events = []
    for _ in range(3):
        one, _ = cpu(16, some, text("events=4", stream=True))
        many, _ = cpu(16, some, text("events=68", stream=True))
        events.append((many - one) * 1000 / 64)
    print(f"streams: {sorted(events)[1]:.2f} CPU us an event", flush=True)
    for rate in (100, 1000):
        direct = bench.load(mock, "open", rate, 3, body("ok"))
        through = bench.load(address, "open", rate, 3, text("ok"), "sk-mock", headers)
        p50, p99 = through["p50_ms"] - direct["p50_ms"], through["p99_ms"] - direct["p99_ms"]
        print(f"{rate} requests/s: p50 +{p50:.3f} ms, p99 +{p99:.3f} ms, {through['bad']} failed", flush=True)
    print(f"bad: {n_bad[0]} of {n_asked[0]}", flush=True)
    print(f"loaded: {sum(memory_mib(each) or 0 for each in tree(pid)):.1f} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--requests", type=int, default=4_000)
    parser.add_argument("--only", choices=PEERS)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        bench = Bench(work, options.requests)
        mock_process, mock = start(BIN / "mock_provider", 0)
        try:
            for name in [options.only] if options.only else PEERS:
                command, address, headers, model_of = PEERS[name](folder, work, mock)
                begun = time.monotonic()
                out = subprocess.PIPE if address is None else subprocess.DEVNULL
                process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.DEVNULL, text=True, env=os.environ)
                try:
                    if address is None:
                        # Its log goes to the same place.
                        address = next(line for line in process.stdout if line.startswith("http://"))
                        address = address.strip().removeprefix("http://").rstrip("/")
                        threading.Thread(target=process.stdout.read, daemon=True).start()
                    wait(bench, address, body(model_of("ok")), headers)
                    print(f"{name}: ready after {(time.monotonic() - begun) * 1000:.0f} ms", flush=True)
                    # Those in Python need a hundredth of a second for a request.
                    n = options.requests // (10 if name == "litellm" else 1)
                    measure(bench, name, process.pid, address, headers, model_of, mock, n)
                finally:
                    for each in reversed(tree(process.pid)):
                        os.kill(each, 9)
                    process.wait()
        finally:
            mock_process.kill()


if __name__ == "__main__":
    main()
