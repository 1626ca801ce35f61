"""Shows images and videos and plays sounds to a running `carat serve` of a tiny model, by the official clients.

    cargo run -p carat-testkit --example chat_model -- gemma4-unified FOLDER >FOLDER/ask.json
    carat serve FOLDER --dtype f32 --port 8080 &
    python3 tests/clients/media.py http://127.0.0.1:8080 FOLDER/ask.json

The model has random weights: what is checked is that images, sounds and videos become tokens, on every API alike, and that
what cannot be used is refused by its name. Ends with 1 and the list of what failed.
"""

import base64
import io
import json
import pathlib
import shutil
import sys
import time

import anthropic
import httpx
import ollama
import openai
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from common import check, refused, run_all

BASE, ASK = sys.argv[1].rstrip("/"), json.load(open(sys.argv[2]))
OPENAI = openai.OpenAI(base_url=BASE + "/v1", api_key="none", max_retries=0)
ANTHROPIC = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
OLLAMA = ollama.Client(host=BASE)
MODEL = OPENAI.models.list().data[0].id
IMAGES = [base64.b64encode(open(path, "rb").read()).decode() for path in ASK["images"]]
SOUND = base64.b64encode(open(ASK["audio"], "rb").read()).decode()
TEXT = {"type": "text", "text": ASK["text"]}


def image(data):
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def sound(data):
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def video(name):
    """A video of the fixtures."""
    path = pathlib.Path(__file__).parent.parent / "fixtures/media" / name
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "video_url", "video_url": {"url": f"data:video/any;base64,{data}"}}


def chat(*parts, **more):
    messages = [{"role": "user", "content": list(parts)}]
    return OPENAI.chat.completions.create(**{"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 8} | more)


def n_prompt(answer):
    return answer.usage.prompt_tokens


@check
def images_and_sounds_are_tokens():
    plain, one = chat(TEXT), chat(image(IMAGES[0]), TEXT)
    two = chat(*map(image, IMAGES), TEXT)
    heard = chat(sound(SOUND), TEXT)
    assert n_prompt(plain) + 16 < n_prompt(one) < n_prompt(two), [n_prompt(x) for x in (plain, one, two)]
    assert n_prompt(plain) + 4 < n_prompt(heard)
    again = chat(*map(image, IMAGES), TEXT)
    assert again.choices[0].message.content == two.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 16, again.usage
    swapped = chat(*map(image, IMAGES[::-1]), TEXT)
    assert swapped.usage.prompt_tokens_details.cached_tokens < n_prompt(swapped) - 16
    streamed = "".join(c.choices[0].delta.content or "" for c in chat(*map(image, IMAGES), TEXT, stream=True) if c.choices)
    assert streamed == two.choices[0].message.content


@check
def every_api_sees_the_same():
    expected = chat(image(IMAGES[0]), TEXT)
    text = expected.choices[0].message.content
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IMAGES[0]}}
    messages = [{"role": "user", "content": [block, TEXT]}]
    message = ANTHROPIC.messages.create(model=MODEL, max_tokens=8, messages=messages, extra_body={"temperature": 0})
    # Of Anthropic's input tokens the cached ones are told apart.
    usage = message.usage
    assert message.content[0].text == text and usage.input_tokens + usage.cache_read_input_tokens == n_prompt(expected)
    assert ANTHROPIC.messages.count_tokens(model=MODEL, messages=messages).input_tokens == n_prompt(expected)
    told = OLLAMA.chat(MODEL, messages=[{"role": "user", "content": ASK["text"], "images": [IMAGES[0]]}], options={"temperature": 0, "num_predict": 8})
    assert told.prompt_eval_count == n_prompt(expected), told
    parts = [{"type": "input_image", "image_url": image(IMAGES[0])["image_url"]["url"]}, {"type": "input_text", "text": ASK["text"]}]
    made = OPENAI.responses.create(model=MODEL, input=[{"role": "user", "content": parts}], temperature=0, max_output_tokens=8)
    assert made.output_text == text
    llm = ChatOpenAI(model=MODEL, base_url=BASE + "/v1", api_key="none", temperature=0, max_tokens=8)
    assert llm.invoke([HumanMessage([image(IMAGES[0]), TEXT])]).content == text


@check
def videos_are_tokens_of_their_frames():
    still, moving = chat(video("palette.gif"), TEXT), chat(video("motion.gif"), TEXT)
    # Twelve frames of 9 x 7 cells, and one.
    frames = n_prompt(moving) - n_prompt(still)
    assert 11 * 63 <= frames < 12 * 80, frames
    again = chat(video("motion.webp"), TEXT)
    assert n_prompt(again) == n_prompt(moving)
    if shutil.which("ffmpeg") and shutil.which("ffprobe"):
        assert n_prompt(chat(video("motion.mp4"), TEXT)) == n_prompt(moving)
    path = "messages[0].content[0].video_url"
    refused(openai.BadRequestError, lambda: chat(video("make.py"), TEXT), path)
    playlist = base64.b64encode(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n").decode()
    part = {"type": "video_url", "video_url": {"url": f"data:video/any;base64,{playlist}"}}
    refused(openai.BadRequestError, lambda: chat(part, TEXT), path)
    parts = [{"type": "input_video", "video_url": "https://a.example/b.mp4"}]
    refused(openai.BadRequestError, lambda: OPENAI.responses.create(model=MODEL, input=[{"role": "user", "content": parts}]), "input[0].content[0]")
    block = {"type": "video", "source": {"type": "url", "url": "https://a.example/b.mp4"}}
    error = refused(anthropic.BadRequestError, lambda: ANTHROPIC.messages.create(model=MODEL, max_tokens=8, messages=[{"role": "user", "content": [block]}]))
    assert "video" in str(error)


@check
def sounds_are_written_down():
    name, data = "sound.wav", base64.b64decode(SOUND)
    told = OPENAI.audio.transcriptions.create(model=MODEL, file=(name, io.BytesIO(data)))
    assert isinstance(told.text, str)
    plain = OPENAI.audio.transcriptions.create(model=MODEL, file=(name, io.BytesIO(data)), response_format="text", language="de")
    assert isinstance(plain, str)
    refused(openai.BadRequestError, lambda: OPENAI.audio.transcriptions.create(model=MODEL, file=(name, io.BytesIO(data)), response_format="srt"), "response_format")


@check
def what_cannot_be_used_is_named():
    path = "messages[0].content[0]"
    refused(openai.BadRequestError, lambda: chat(image("AAAA"), TEXT), f"{path}.image_url")
    refused(openai.BadRequestError, lambda: chat(image("no base64!"), TEXT), f"{path}.image_url")
    refused(openai.BadRequestError, lambda: chat(sound("AAAA"), TEXT), f"{path}.input_audio.data")
    # The server's own machine is nobody's business.
    inside = {"type": "image_url", "image_url": {"url": BASE + "/health"}}
    refused(openai.BadRequestError, lambda: chat(inside, TEXT), f"{path}.image_url")
    wrong = [{"role": "assistant", "content": [image(IMAGES[0])]}, {"role": "user", "content": "x"}]
    refused(openai.BadRequestError, lambda: chat(messages=wrong), f"{path}.image_url")


@check
def leaving_stops_the_work():
    body = {"model": MODEL, "max_tokens": 400, "messages": [{"role": "user", "content": [image(IMAGES[1]), TEXT]}]}
    try:
        httpx.post(BASE + "/v1/chat/completions", json=body, timeout=0.02)
    except httpx.TimeoutException:
        pass
    deadline = time.time() + 20
    while any(line.startswith("carat_sequences_running{") and not line.endswith(" 0") for line in httpx.get(BASE + "/metrics").text.splitlines()):
        assert time.time() < deadline, "the sequence goes on"
        time.sleep(0.05)


run_all(f"of images, sounds and videos with {MODEL}")
