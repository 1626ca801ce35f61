"""Runs the official clients against the gateway in front of the mock provider, each client at every provider.

    cargo build -p carat-gateway --examples
    python3 -m venv VENV && VENV/bin/pip install -r tests/clients/requirements.txt
    VENV/bin/python tests/clients/gateway.py target/debug

Starts and ends both by itself. Ends with 1 and the list of what failed.
"""

import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
import traceback

import anthropic
import ollama
import openai
from google import genai
from google.genai import types

TARGET = pathlib.Path(sys.argv[1])
#: What the mock says in its native dialects: a thought, then words; 11 tokens in, 4 out.
THOUGHT, WORDS = "hmm", "Grüße aus Köln"
PLAIN = ["m"]
NATIVE = ["anthropic", "gemini", "ollama", "bedrock", "cohere"]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
USER = [{"role": "user", "content": "Hi"}]
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def config(mock):
    return f"""
listen = "127.0.0.1:0"
[providers.m]
base-url = "{mock}/v1"
key = "sk-mock"
[providers.anthropic]
base-url = "{mock}"
key = "sk-ant"
[providers.gemini]
base-url = "{mock}/v1beta"
key = "AIza"
[providers.ollama]
base-url = "{mock}"
[providers.cohere]
base-url = "{mock}"
key = "co"
[providers.bedrock]
base-url = "{mock}"
vars = {{ region = "eu-west-1" }}
aws = {{ access-key-id = "AKIDEXAMPLE", secret-access-key = "secret" }}
"""


def said(provider):
    return None if provider in PLAIN else WORDS


@check
def openai_chat(base):
    client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0)
    tool = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
    for provider in PLAIN + NATIVE:
        make = lambda command, **more: client.chat.completions.create(model=f"{provider}/{command}", messages=USER, **more)
        whole = make("ok")
        assert whole.choices[0].message.content == (said(provider) or "one two three four"), (provider, whole)
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (11, 4), (provider, whole.usage)
        text, usage, finish = "", None, None
        for chunk in make("ok", stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        assert text and finish == "stop" and usage.completion_tokens == 4, (provider, text, finish, usage)
        call = make("tool", tools=[tool]).choices[0].message.tool_calls[0]
        assert json.loads(call.function.arguments) == {"city": "Köln"}, provider
        with client.chat.completions.stream(model=f"{provider}/tool", messages=USER, tools=[tool]) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion().choices[0]
        assert final.finish_reason == "tool_calls" and json.loads(final.message.tool_calls[0].function.arguments)
        back = [final.message, {"role": "tool", "tool_call_id": final.message.tool_calls[0].id, "content": "sunny"}]
        assert make("ok", tools=[tool]) and client.chat.completions.create(
            model=f"{provider}/ok", messages=USER + back, tools=[tool])
        try:
            make("status=422")
            raise AssertionError("nothing was refused")
        except openai.UnprocessableEntityError as error:
            assert "mock says" in error.body["message"], error.body
    try:
        for _ in client.chat.completions.create(model="anthropic/cut=9", messages=USER, stream=True):
            pass
        raise AssertionError("a cut stream seemed whole")
    except openai.APIError as error:
        assert "cut off" in str(error), error


@check
def openai_responses(base):
    client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0)
    flat = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
    for provider in PLAIN + NATIVE:
        whole = client.responses.create(model=f"{provider}/ok", input="Hi", instructions="Be kind", store=False)
        assert whole.output_text and whole.usage.output_tokens == 4 and whole.status == "completed", (provider, whole)
        with client.responses.stream(model=f"{provider}/ok", input="Hi") as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed", (provider, kinds)
        assert final.output_text and "response.output_text.delta" in kinds
        if provider in NATIVE:
            assert final.output[0].type == "reasoning" and final.output[0].summary[0].text == THOUGHT, final.output
        with client.responses.stream(model=f"{provider}/tool", input="Hi", tools=[flat]) as stream:
            for _ in stream:
                pass
            made = stream.get_final_response()
        call = [item for item in made.output if item.type == "function_call"][0]
        assert json.loads(call.arguments) == {"city": "Köln"}, (provider, call)
        back = [item.model_dump(exclude_none=True) for item in made.output]
        for item in back:
            item.pop("parsed_arguments", None)
        back.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
        assert client.responses.create(model=f"{provider}/ok", input=USER + back, tools=[flat]).output_text


@check
def openai_completions_and_embeddings(base):
    client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0)
    for provider in NATIVE:
        assert client.completions.create(model=f"{provider}/ok", prompt="Hi").choices[0].text == WORDS, provider
        stream = client.completions.create(model=f"{provider}/ok", prompt="Hi", stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == WORDS, provider
    for model in ["gemini/e", "ollama/e", "cohere/e", "bedrock/amazon.titan-embed-text-v2"]:
        # The client asks for base64 by itself.
        assert client.embeddings.create(model=model, input="a").data[0].embedding == [0.5, -1.25], model
    raw = client.embeddings.with_raw_response.create(model="gemini/e", input="a", encoding_format="base64")
    assert struct.pack("<2f", 0.5, -1.25) and raw.status_code == 200


@check
def azure(base):
    client = openai.AzureOpenAI(azure_endpoint=base, api_key="none", api_version="2024-10-21", max_retries=0)
    assert client.chat.completions.create(model="m/ok", messages=USER).choices[0].message.content


@check
def anthropic_messages(base):
    client = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0)
    tool = {"name": "weather", "input_schema": CITY}
    for provider in PLAIN + NATIVE:
        whole = client.messages.create(model=f"{provider}/ok", max_tokens=50, messages=USER)
        assert whole.stop_reason == "end_turn" and whole.content[-1].text, (provider, whole)
        with client.messages.stream(model=f"{provider}/ok", max_tokens=50, messages=USER) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == final.content[-1].text and final.usage.output_tokens == 4, (provider, final)
        with client.messages.stream(model=f"{provider}/tool", max_tokens=50, messages=USER, tools=[tool]) as stream:
            used = stream.get_final_message()
        block = [block for block in used.content if block.type == "tool_use"][0]
        assert (used.stop_reason, block.input) == ("tool_use", {"city": "Köln"}), (provider, used)
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
        turn = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in used.content]}
        again = USER + [turn, {"role": "user", "content": [result]}]
        assert client.messages.create(model=f"{provider}/ok", max_tokens=50, messages=again, tools=[tool]).content
        assert client.messages.count_tokens(model=f"{provider}/ok", messages=USER).input_tokens > 0, provider
    try:
        client.messages.create(model="anthropic/status=529", max_tokens=5, messages=USER)
        raise AssertionError("nothing was refused")
    except anthropic.APIStatusError as error:
        assert error.status_code == 529, error


@check
def google_genai(base):
    client = genai.Client(api_key="none", http_options=types.HttpOptions(base_url=base))
    function = types.FunctionDeclaration(name="weather", parameters_json_schema=CITY)
    tools = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[function])],
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True))
    for provider in PLAIN + NATIVE:
        model = f"{provider}/ok"
        whole = client.models.generate_content(model=model, contents="Hi")
        assert whole.text and whole.usage_metadata.prompt_token_count == 11, (provider, whole)
        text = "".join(part.text or "" for part in client.models.generate_content_stream(model=model, contents="Hi"))
        assert text, provider
        if provider in NATIVE:
            assert text == WORDS, (provider, text)
        call = client.models.generate_content(model=f"{provider}/tool", contents="Hi", config=tools).function_calls[0]
        assert (call.name, dict(call.args)) == ("weather", {"city": "Köln"}), (provider, call)
        assert client.models.count_tokens(model=model, contents="Hi").total_tokens > 0, provider


@check
def ollama_client(base):
    client = ollama.Client(host=base)
    tool = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": CITY}}
    for provider in PLAIN + NATIVE:
        whole = client.chat(f"{provider}/ok", messages=USER)
        parts = list(client.chat(f"{provider}/ok", messages=USER, stream=True))
        assert whole.message.content and parts[-1].done and parts[-1].eval_count == 4, (provider, parts)
        call = client.chat(f"{provider}/tool", messages=USER, tools=[tool]).message.tool_calls[0].function
        assert (call.name, dict(call.arguments)) == ("weather", {"city": "Köln"}), (provider, call)
        if provider in NATIVE:
            assert client.generate(f"{provider}/ok", "Hi").response == WORDS, provider
            assert "".join(part.response for part in client.generate(f"{provider}/ok", "Hi", stream=True)) == WORDS
    assert list(client.embed("cohere/e", ["a"]).embeddings[0]) == [0.5, -1.25]


def started(command, log, begins="http://"):
    """A process, once it has told where it listens."""
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    for _ in range(100):
        for word in pathlib.Path(log).read_text().split():
            if word.startswith(begins):
                return process, word.rstrip("/")
        if process.poll() is not None:
            break
        time.sleep(0.1)
    sys.exit(f"{command[0]} does not start: {pathlib.Path(log).read_text()}")


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        mock, mock_url = started([TARGET / "examples/mock_provider", "0"], folder / "mock.log")
        path = folder / "gateway.toml"
        path.write_text(config(mock_url.removesuffix("/v1")))
        gateway, url = started([TARGET / "examples/bench_gateway", path], folder / "gateway.log")
        base = url.removesuffix("/v1")
        try:
            failed = []
            for function in CHECKS:
                began = time.time()
                try:
                    function(base)
                    print(f"ok    {function.__name__} ({time.time() - began:.1f} s)", flush=True)
                except Exception:
                    failed.append(function.__name__)
                    print(f"FAILED {function.__name__}\n{traceback.format_exc()}", flush=True)
        finally:
            gateway.terminate()
            mock.terminate()
            gateway.wait()
            mock.wait()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    print(f"all {len(CHECKS)} checks passed")


main()
