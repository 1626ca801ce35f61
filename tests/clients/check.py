"""Runs the official clients against a running `carat serve`.

    python3 -m venv VENV && VENV/bin/pip install -r tests/clients/requirements.txt
    carat serve MODEL --port 8080 --ctx 4096 &
    VENV/bin/python tests/clients/check.py http://127.0.0.1:8080

Any Gemma will do, base models too: what is checked is form, not wit. Ends with 1 and the list of what failed.
"""

import json
import sys
import threading
import time

from typing import Literal, Optional

import anthropic
import httpx
import ollama
import openai
import pydantic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from common import check, refused, run_all

BASE = sys.argv[1].rstrip("/")
OPENAI = openai.OpenAI(base_url=BASE + "/v1", api_key="none", max_retries=0)
ANTHROPIC = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
OLLAMA = ollama.Client(host=BASE)
MODEL = OPENAI.models.list().data[0].id
USER = [{"role": "user", "content": "Name three rivers of Europe."}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather now", "parameters": CITY}}


def chat(**more):
    return OPENAI.chat.completions.create(**{"model": MODEL, "messages": USER, "temperature": 0, "max_tokens": 24} | more)


@check
def models():
    assert OPENAI.models.retrieve(MODEL).id == MODEL
    refused(openai.NotFoundError, lambda: OPENAI.models.retrieve("nobody/has:this"))


@check
def chat_whole_and_streamed_agree():
    whole = chat()
    text, usage, finish = "", None, None
    for chunk in chat(stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    # The second prompt continues from a cache of the first: rounding may differ, and a base model may then turn elsewhere.
    assert text[:8] == whole.choices[0].message.content[:8], (text, whole)
    assert finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= usage.prompt_tokens - 64


@check
def chat_stream_helper():
    with OPENAI.chat.completions.stream(
        model=MODEL, messages=USER, max_tokens=40, temperature=0, extra_body={"guided_regex": "[a-z ]{1,10}"}
    ) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.role == "assistant"


@check
def choices_seed_and_logprobs():
    ask = lambda: chat(n=3, temperature=1, seed=7, logprobs=True, top_logprobs=2, max_tokens=6)
    first, second = ask(), ask()
    assert len(first.choices) == 3 and first.usage.completion_tokens <= 18
    for a, b in zip(first.choices, second.choices):
        assert a.logprobs.content[0].token == b.logprobs.content[0].token
        assert len(a.logprobs.content[0].top_logprobs) == 2 and a.logprobs.content[0].logprob <= 0


@check
def stops_bias_and_limits():
    assert "e" not in chat(stop=["e"], max_tokens=40).choices[0].message.content
    answer = chat(max_completion_tokens=3)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 3)
    forced = httpx.post(BASE + "/tokenize", json={"content": "Rome"}).json()["tokens"][0]
    assert chat(logit_bias={str(forced): 100}, max_tokens=1).choices[0].message.content == "Rome"


@check
def json_mode_and_schema():
    json.loads(chat(response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": CITY, "strict": True}},
                    max_tokens=80).choices[0].message.content)
    class Town(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=12)
        large: bool

    parsed = OPENAI.chat.completions.parse(model=MODEL, messages=USER, response_format=Town, max_tokens=80)
    assert isinstance(parsed.choices[0].message.parsed, Town)
    bad = {"type": "json_schema", "json_schema": {"name": "c", "schema": {"type": "nonsense"}}}
    refused(openai.BadRequestError, lambda: chat(response_format=bad), "response_format.json_schema.schema")
    text = chat(extra_body={"guided_regex": "[a-c]{3}"}).choices[0].message.content
    assert len(text) == 3 and set(text) <= set("abc"), text
    assert chat(extra_body={"grammar": 'root ::= ("yes" | "no") "!"'}).choices[0].message.content in ("yes!", "no!")


@check
def tools_whole_streamed_and_answered():
    answer = chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=80)
    choice = answer.choices[0]
    call = choice.message.tool_calls[0]
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments)["unit"] in ("C", "F")
    named = {"type": "function", "function": {"name": "weather"}}
    arguments, names = "", []
    for chunk in chat(tools=[TOOL], tool_choice=named, stream=True, max_tokens=80):
        for part in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            names += [part.function.name] if part.function.name else []
            arguments += part.function.arguments or ""
    assert names == ["weather"] and json.loads(arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    assert chat(messages=USER + [choice.message, result], tools=[TOOL], tool_choice="none").choices[0].message.content is not None
    wrong = {"role": "tool", "tool_call_id": "other", "content": "sunny"}
    refused(openai.BadRequestError, lambda: chat(messages=USER + [wrong]))


@check
def completions():
    make = OPENAI.completions.create
    answer = make(model=MODEL, prompt=["One, two,", "A, b,"], max_tokens=4, temperature=0, echo=True)
    assert [choice.text.split(",")[0] for choice in answer.choices] == ["One", "A"]
    text = "".join(c.choices[0].text for c in make(model=MODEL, prompt="One, two,", max_tokens=4, stream=True))
    assert text
    assert len(make(model=MODEL, prompt=[2, 108], max_tokens=2, logprobs=3).choices[0].logprobs.tokens) == 2
    refused(openai.BadRequestError, lambda: make(model=MODEL, prompt="x", suffix="y"), "suffix")


@check
def responses():
    first = OPENAI.responses.create(model=MODEL, input="Hello.", max_output_tokens=16, temperature=0)
    assert first.output_text and first.usage.total_tokens
    city = {"format": {"type": "json_schema", "name": "c", "schema": CITY, "strict": True}}
    with OPENAI.responses.stream(model=MODEL, input="Go on.", previous_response_id=first.id, text=city) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and final.usage.input_tokens > first.usage.input_tokens
    flat = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
    made = OPENAI.responses.create(model=MODEL, input="Rome?", tools=[flat], tool_choice="required", max_output_tokens=80,
                                   parallel_tool_calls=False)
    call = made.output[0]
    assert call.type == "function_call" and json.loads(call.arguments)
    back = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    assert OPENAI.responses.create(model=MODEL, input=[back], previous_response_id=made.id, max_output_tokens=8).output
    refused(openai.BadRequestError, lambda: OPENAI.responses.create(model=MODEL, input="x", previous_response_id="resp_no"))


@check
def embeddings():
    near = OPENAI.embeddings.create(model=MODEL, input=["a cat", "a kitten", "tax law of 1954"]).data
    dot = lambda a, b: sum(x * y for x, y in zip(a.embedding, b.embedding))
    assert abs(dot(near[0], near[0]) - 1) < 1e-3 and dot(near[0], near[1]) > dot(near[0], near[2])
    assert len(OPENAI.embeddings.create(model=MODEL, input=[2, 108], encoding_format="float", dimensions=8).data[0].embedding) == 8


@check
def openai_errors():
    refused(openai.BadRequestError, lambda: chat(temperature=1000), "temperature")
    refused(openai.BadRequestError, lambda: chat(extra_body={"top_k": "many"}), "top_k")
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]
    refused(openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": image}]))
    error = refused(openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": "word " * 200_000}]))
    assert error.body["code"] == "context_length_exceeded"
    assert httpx.get(BASE + "/v1/nothing").status_code == 404


@check
def anthropic_messages():
    make = ANTHROPIC.messages.create
    answer = make(model=MODEL, max_tokens=16, messages=USER, system="Be brief.", extra_body={"temperature": 0})
    assert answer.content[0].type == "text" and answer.usage.output_tokens <= 16
    with ANTHROPIC.messages.stream(model=MODEL, max_tokens=16, messages=USER) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().content[0].text == text
    tool = {"name": "weather", "description": "now", "input_schema": CITY}
    used = make(model=MODEL, max_tokens=80, messages=USER, tools=[tool], tool_choice={"type": "tool", "name": "weather"})
    block = used.content[0]
    assert used.stop_reason == "tool_use" and block.input["unit"] in ("C", "F")
    with ANTHROPIC.messages.stream(model=MODEL, max_tokens=80, messages=USER, tools=[tool], tool_choice={"type": "any", "disable_parallel_tool_use": True}) as stream:
        assert stream.get_final_message().content[0].input["unit"] in ("C", "F")
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}]}
    assistant = {"role": "assistant", "content": [block.model_dump(exclude_none=True)]}
    # What a base model says to a result may well be nothing.
    assert make(model=MODEL, max_tokens=8, messages=USER + [assistant, result], tools=[tool]).stop_reason
    assert ANTHROPIC.messages.count_tokens(model=MODEL, messages=USER).input_tokens > 5
    refused(anthropic.BadRequestError, lambda: make(model=MODEL, max_tokens=0, messages=USER))


@check
def ollama_client():
    assert MODEL in [model.model for model in OLLAMA.list().models]
    assert OLLAMA.show(MODEL).details.family
    options = {"num_predict": 12, "temperature": 0}
    whole = OLLAMA.chat(MODEL, messages=USER, options=options)
    parts = list(OLLAMA.chat(MODEL, messages=USER, options=options, stream=True))
    assert whole.message.content and parts[-1].done and parts[-1].eval_count
    assert json.loads(OLLAMA.chat(MODEL, messages=USER, format=CITY, options={"num_predict": 80}).message.content)
    assert OLLAMA.generate(MODEL, "One, two,", raw=True, options=options).response
    assert OLLAMA.generate(MODEL, "Hello", options=options, stream=False).done_reason in ("stop", "length")
    assert len(OLLAMA.embed(MODEL, ["a", "b"]).embeddings) == 2


def is_idle():
    lines = httpx.get(BASE + "/metrics").text.splitlines()
    return all(line.endswith(" 0") for line in lines if line.startswith("carat_sequences_running{"))


@check
def leaving_stops_the_work():
    endless = {"logit_bias": {"1": -100, "106": -100}}
    ways = [
        lambda: OPENAI.completions.create(model=MODEL, prompt="One, two,", max_tokens=2000, stream=True, extra_body=endless),
        lambda: OPENAI.chat.completions.create(model=MODEL, messages=USER, max_tokens=2000, stream=True, extra_body=endless),
        lambda: OPENAI.responses.create(model=MODEL, input="Hello.", max_output_tokens=2000, stream=True, extra_body=endless),
    ]
    for way in ways:
        stream = way()
        next(iter(stream))
        assert not is_idle()
        stream.close()
        wait_for(is_idle)
    # One that never reads, and one that gives up waiting for a whole answer.
    body = {"model": MODEL, "prompt": "One, two,", "max_tokens": 2000} | endless
    try:
        httpx.post(BASE + "/v1/completions", json=body, timeout=0.5)
        raise AssertionError("that was too fast to be left")
    except httpx.TimeoutException:
        pass
    wait_for(is_idle)


def wait_for(condition, seconds=20):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "the sequence goes on"
        time.sleep(0.05)


@check
def many_at_once():
    failures = []

    def one(i):
        try:
            assert chat(messages=[{"role": "user", "content": f"Say {i}."}], max_tokens=8).choices
        except Exception as error:  # told below
            failures.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(24)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures, failures[0]


@check
def a_stream_of_small_events_does_not_stall():
    started = time.time()
    n_events = sum(1 for _ in chat(stream=True, max_tokens=1, n=16))
    assert n_events >= 16 and time.time() - started < 30


@check
def langchain_chats_calls_and_binds():
    llm = ChatOpenAI(model=MODEL, base_url=BASE + "/v1", api_key="none", temperature=0, max_tokens=200, max_retries=0)
    answer = llm.invoke("Name three rivers of Europe.")
    assert answer.usage_metadata["output_tokens"] and answer.response_metadata["finish_reason"]
    assert "".join(str(chunk.content) for chunk in llm.stream("Name three rivers of Europe."))[:8] == answer.content[:8]

    @tool
    def weather(city: Literal["Rome", "Oslo"], days: int = 1) -> str:
        """The weather of a city."""
        return f"sun in {city} for {days} days"

    asked = llm.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False).invoke("And in Rome?")
    call = asked.tool_calls[0]
    assert call["args"]["city"] in ("Rome", "Oslo"), asked
    llm.bind_tools([weather], tool_choice="none").invoke([HumanMessage("And in Rome?"), asked, weather.invoke(call)])

    class Town(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=12)
        size: Optional[Literal["small", "large"]]

    for method in ("json_schema", "function_calling"):
        assert isinstance(llm.with_structured_output(Town, method=method).invoke("Describe Oslo."), Town), method


@check
def thoughts_have_budgets():
    # A model that cannot think answers as it always does.
    for effort in ("none", "low", "high"):
        assert chat(reasoning_effort=effort, max_tokens=4).choices[0].message.content is not None
    assert chat(extra_body={"thinking_budget": 100}, max_tokens=4).choices
    thinking = {"type": "enabled", "budget_tokens": 1024}
    assert ANTHROPIC.messages.create(model=MODEL, max_tokens=1025, messages=USER, thinking=thinking, stop_sequences=["e"]).content is not None
    error = refused(anthropic.BadRequestError, lambda: ANTHROPIC.messages.create(model=MODEL, max_tokens=8, messages=USER, thinking=thinking))
    assert "budget_tokens" in str(error)


run_all(f"with {MODEL}")
