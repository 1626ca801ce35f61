"""Sends random bodies, made from the server's own /openapi.json, to every route of a running `carat serve`.

    python3 tests/clients/bodies.py http://127.0.0.1:8080 [BODIES PER ROUTE] [SEED]

Most values are as the document says, some are nonsense, some bodies are cut off or no JSON at all. Every answer must come
within a minute, be one that the document lists (never 500), and be JSON in the API's own shape where it is an error. Ends
with 1 at the first that is not, and prints the body. Only the standard library.
"""

import base64
import collections
import http.client
import json
import random
import sys
import urllib.parse

BASE = urllib.parse.urlparse(sys.argv[1])
N = int(sys.argv[2]) if len(sys.argv) > 2 else 60
DICE = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 5)
NONSENSE = [None, True, -1, 0, 3, 1e308, -(2**63), 2**64, "", "x", "\u0000", [], [[]], [1, "a"], {}, {"type": "text"}, {"a": {"b": []}}, "\U0001f600" * 50, "x" * 5000]
# Schemas of tools and answers, right and wrong.
SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]},
    {"type": "object", "properties": {"b": {"type": "array", "items": {"$ref": "#/$defs/x"}}}, "$defs": {"x": {"enum": [1, "y"]}}},
    {"type": "object", "properties": {"c": {"type": "nonsense"}}},
    {"type": "object", "properties": {"d": {"$ref": "#/$defs/nowhere"}}},
    {"$ref": "#"}, {"anyOf": []}, {"type": "string", "pattern": "("}, {"type": "object", "required": ["z"]}, {},
]
# How an answer is kept short, by route; chat and the rest by `max_tokens`.
SHORT = {"/api/chat": ("options", {"num_predict": 3}), "/api/generate": ("options", {"num_predict": 3}), "/v1/responses": ("max_output_tokens", 3)}
NONSENSE_SHARE = 0.03


def value(schema, spec, depth=0):
    """A value of the schema, or now and then something else."""
    if depth > 8 or DICE.random() < NONSENSE_SHARE:
        return DICE.choice(NONSENSE)
    if "$ref" in schema:
        schema = spec["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if "examples" in schema and DICE.random() < 0.8:
        return DICE.choice(schema["examples"])
    if "oneOf" in schema:
        return value(DICE.choice(schema["oneOf"]), spec, depth + 1)
    if "enum" in schema:
        return DICE.choice(schema["enum"])
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        fields = schema.get("properties")
        if fields is None:
            return DICE.choice(SCHEMAS)
        needed = schema.get("required", [])
        # Few at a time: most of many would contradict each other.
        share = min(0.25, 2.5 / len(fields)) if fields else 0
        return {name: value(fields[name], spec, depth + 1) for name in fields if name in needed or DICE.random() < share}
    if kind == "array":
        return [value(schema["items"], spec, depth + 1) for _ in range(DICE.randrange(1, 4))]
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", -5), min(schema.get("maximum", 50), 50)
        number = DICE.randint(int(low), int(max(low, high)))
        return number if kind == "integer" else number * DICE.choice([1, 0.1])
    if kind == "boolean":
        return DICE.random() < 0.5
    if kind == "null":
        return None
    return DICE.choice(["", "user", "text", "Hi", "a b", "\n", "none", "{", "[a-z]+"]) if kind == "string" else DICE.choice(NONSENSE)


def spoiled(data):
    """Bytes that are no JSON any more, or are other JSON."""
    kind = DICE.randrange(4)
    if kind == 0:
        return data[: DICE.randrange(len(data) + 1)]
    if kind == 1:
        at = DICE.randrange(len(data) + 1)
        return data[:at] + DICE.randbytes(3) + data[at:]
    if kind == 2:
        return b"[" * DICE.randrange(1, 3000)
    return DICE.randbytes(DICE.randrange(200))


def form(schema, spec):
    """A body of multipart/form-data, and its type."""
    fields, parts = value(schema, spec), []
    for name, field in (fields if isinstance(fields, dict) else {}).items():
        content = field if isinstance(field, str) else json.dumps(field)
        if name == "file" and DICE.random() < 0.7:
            content = base64.b64decode("UklGRiQAAABXQVZFZm10IBAAAAABAAEAgD4AAAB9AAACABAAZGF0YQAAAAA=").decode("latin-1")
        parts.append(f'--bound\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n{content}\r\n')
    return ("".join(parts) + "--bound--\r\n").encode("latin-1", "replace"), "multipart/form-data; boundary=bound"


def send(method, path, data, kind):
    connection = http.client.HTTPConnection(BASE.hostname, BASE.port, timeout=60)
    try:
        connection.request(method, path, data, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("content-type", ""), answer.read()
    finally:
        connection.close()


def check(path, about, told, data):
    status, kind, body = told
    assert str(status) in about["responses"] and status != 500, (path, status, data, body)
    if status >= 400:
        error = json.loads(body)
        error = error["error"]
        # Ollama's errors are texts.
        message = error if path.startswith("/api/") else error["message"]
        assert isinstance(message, str) and message, (path, data, body)
    elif "event-stream" in kind:
        assert body.endswith(b"\n\n"), (path, data, body)


def main():
    spec = json.loads(send("GET", "/openapi.json", None, "")[2])
    tally = collections.Counter()
    for path, methods in spec["paths"].items():
        for method, about in methods.items():
            if method != "post":
                names = ["", "x", "%00", "a/b", "gemma", "\u00e9", "x" * 3000] if "{" in path else [""]
                for name in names:
                    url = urllib.parse.quote(path.split("{")[0] + name, safe="/%")
                    check(path, about, send(method.upper(), url, None, ""), name)
                continue
            (kind, content), = about["requestBody"]["content"].items()
            for _ in range(N):
                if kind == "multipart/form-data":
                    data, header = form(content["schema"], spec)
                else:
                    body, header = value(content["schema"], spec), kind
                    if isinstance(body, dict):
                        name, least = SHORT.get(path, ("max_tokens", 3))
                        # Now and then the field is what came out, but an answer without a bound may take the whole context.
                        if DICE.random() < 0.95 or not isinstance(body.get(name), int):
                            body[name] = least
                        body.pop("max_completion_tokens", None)
                        body.pop("n", None)
                    data = json.dumps(body).encode()
                if DICE.random() < 0.07:
                    data = spoiled(data)
                told = send("POST", path, data, header)
                check(path, about, told, data)
                tally[path, told[0]] += 1
    n = collections.Counter()
    for (path, status), count in sorted(tally.items()):
        n[status] += count
        print(f"{count:6} {status} {path}")
    assert n[200] > 4 * N and n[400] > 4 * N, "the bodies are too right or too wrong to tell anything"
    print(f"{sum(n.values())} bodies, none broke the server")


main()
