"""Makes prices.json from the price list of the crate `genai-prices` (MIT, Pydantic): `make_prices.py data/prices.json`.

Kept: ids, the names that mean them, context windows, prices of tokens and requests in dollars a million, tiers. Left
out: descriptions, variants for batches and tiers of service, and patterns, which nearly all say that a date may follow;
carat takes dates off itself.
"""

import json
import sys

KEPT = {
    "input_mtok": "input",
    "cache_read_mtok": "cache-read",
    "cache_write_mtok": "cache-write",
    "cache_write_1h_mtok": "cache-write-1h",
    "output_mtok": "output",
    "output_reasoning_mtok": "reasoning",
    "requests_kcount": "thousand-requests",
}


def names(match):
    for kind, value in match.items():
        if kind == "or":
            for other in value:
                yield from names(other)
        elif kind in ("equals", "starts_with", "ends_with", "contains"):
            yield [kind, value]


def model(entry):
    made = {"id": entry["id"], "names": list(names(entry["match"]))}
    made["prices"] = {short: entry["prices"][name] for name, short in KEPT.items() if name in entry["prices"]}
    if entry.get("context_window"):
        made["context"] = entry["context_window"]
    if entry.get("deprecated"):
        made["deprecated"] = True
    return made if made["prices"] else None


providers = json.load(open(sys.argv[1]))
made = {p["id"]: [m for m in map(model, p["models"]) if m] for p in providers}
lines = []
for provider, models in made.items():
    body = ",\n".join(json.dumps(m, separators=(",", ":"), ensure_ascii=False) for m in models)
    lines.append(f"{json.dumps(provider)}:[\n{body}\n]")
print("{" + ",\n".join(lines) + "}")
