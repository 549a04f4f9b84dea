"""The model as a small HTTP app. One call after each answer reports it to cmerwatch."""

import base64
import binascii
import io
import json
import signal
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

import cmerwatch
from toy_vlm import captions, vlm

MAX_BODY = 12 << 20  # bytes
MAX_PIXELS = 25_000_000
_PROMPT_TYPES = {prompt: prompt_type for prompt_type, prompt in captions.PROMPTS.items()}

_PAGE = """<!doctype html><meta charset="utf-8"><title>toy-vlm</title>
<style>body{font:16px/1.5 system-ui;max-width:34rem;margin:3rem auto;padding:0 1rem}
img{max-width:100%;display:block;margin:1rem 0}output{display:block;white-space:pre-wrap}</style>
<h1>Ask about a drawn scene</h1>
<p><label>Picture <input type="file" id="file" accept="image/*"></label>
<p><label>Question <select id="prompt">OPTIONS</select></label> <button id="ask">Ask</button>
<img id="shown" alt=""><output id="answer"></output>
<script>
const at = id => document.getElementById(id);
let image = "";
at("file").onchange = () => {
  const reader = new FileReader();
  reader.onload = () => { at("shown").src = reader.result; image = reader.result.split(",")[1]; };
  reader.readAsDataURL(at("file").files[0]);
};
at("ask").onclick = async () => {
  const body = JSON.stringify({image, prompt: at("prompt").value});
  const reply = await (await fetch("/ask", {method: "POST", body})).json();
  at("answer").textContent = reply.error || reply.answer + "  (" + reply.model_version + ")";
};
</script>""".replace("OPTIONS", "".join(f"<option>{prompt}</option>" for prompt in captions.PROMPTS.values()))


class BadRequest(Exception):
    """The caller's mistake, told in the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Question:
    picture: bytes
    image: Image.Image
    prompt: str
    customer: str | None


class App(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, version: str) -> None:
        self.model = vlm.load(version)
        self.version = version
        self._one_at_a_time = threading.Lock()  # a forward pass already uses every core
        super().__init__(("127.0.0.1", port), Handler)

    def ask(self, question: Question) -> dict[str, Any]:
        with self._one_at_a_time:
            answer = self.model.answer(question.image, question.prompt)
        cmerwatch.record(
            image=question.picture,
            prompt=question.prompt,
            output=answer.text,
            endpoint="/ask",
            prompt_type=_PROMPT_TYPES.get(question.prompt, "other"),
            customer=question.customer,
            model=vlm.NAME,
            model_version=self.version,
            tokens=answer.tokens,
            logprobs=answer.logprobs,
        )
        return {
            "answer": answer.text,
            "tokens": answer.tokens,
            "logprobs": answer.logprobs,
            "model_version": self.version,
        }


class Handler(BaseHTTPRequestHandler):
    server: App

    def do_GET(self) -> None:
        if self.path != "/":
            return self._send(404, "application/json", b'{"error": "only / and POST /ask are here"}')
        self._send(200, "text/html; charset=utf-8", _PAGE.encode())

    def do_POST(self) -> None:
        try:
            status, reply = 200, self.server.ask(self._question())
        except BadRequest as error:
            status, reply = error.status, {"error": str(error)}
        except vlm.PromptTooLong as error:
            status, reply = 400, {"error": str(error)}
        self._send(status, "application/json", json.dumps(reply).encode())

    def log_message(self, format: str, *values: object) -> None:
        """Nothing: a request line is the caller's text."""

    def _question(self) -> Question:
        if self.path != "/ask":
            raise BadRequest(404, "only / and POST /ask are here")
        body = self._body()
        prompt, customer, encoded = (body.get(name) for name in ("prompt", "customer", "image"))
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadRequest(400, "prompt must be a text that is not empty")
        if customer is not None and not isinstance(customer, str):
            raise BadRequest(400, "customer must be a text")
        if not isinstance(encoded, str):
            raise BadRequest(400, "image must be the picture's bytes in base64")
        picture = _decoded(encoded)
        return Question(picture, _opened(picture), prompt, customer)

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise BadRequest(411, "Content-Length is missing")
        if int(length) > MAX_BODY:
            self.close_connection = True  # the rest of the body is never read
            raise BadRequest(413, f"the body has {length} bytes, the limit is {MAX_BODY}")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError:
            raise BadRequest(400, "the body is not JSON") from None
        if not isinstance(body, dict):
            raise BadRequest(400, "the body must be a JSON object with image and prompt")
        return body

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _decoded(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise BadRequest(400, "image is not base64") from None


def _opened(picture: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(picture))
        # The header is enough to see the size; nothing is decoded before it is known to be small.
        if image.width * image.height > MAX_PIXELS:
            raise BadRequest(413, f"the image has {image.width} x {image.height} pixels, the limit is {MAX_PIXELS}")
        image.load()
    except (OSError, Image.DecompressionBombError):
        raise BadRequest(400, "image is not a picture that can be read") from None
    return image


def run(port: int, version: str) -> None:
    """Serves until SIGINT or SIGTERM; what is still queued is sent before it returns."""
    cmerwatch.init()
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    with App(port, version) as app:
        print(f"toy-vlm {version} at http://127.0.0.1:{app.server_port}", flush=True)
        try:
            app.serve_forever()
        except KeyboardInterrupt:
            cmerwatch.shutdown()
