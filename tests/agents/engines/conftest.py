"""A small server that speaks vLLM's native protocol (0.32) by the project's own decoder, and fails on demand."""

import copy
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
from safetensors.torch import load_file

from agents.engines.group import join
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.sampling import TokenSampling


class FakeVLLM:
    """Serves ``model`` at a free port; ``received`` are the weights of each broadcast, ``joined`` how many groups.

    ``faults`` maps a path to what its next answers are: "short", "garbage", "oom", "slow", "hang up", "refuse", "kill"
    (the server ends with the request), "stale" (by other weights), "absent" (says yes and does nothing), or None for a
    right one.
    """

    def __init__(self, model, port=0):
        self.received, self.joined = [], 0
        self.start_model, self.faults, self.calls, self.requests = model, {}, Counter(), []
        self.lock, self.port, self.stopped = threading.Lock(), port, threading.Event()
        self.start()

    def start_when_stopped(self):
        """Start anew, in a thread, once this server is killed."""

        def start():
            self.stopped.wait()
            self.start()

        threading.Thread(target=start, daemon=True).start()

    def start(self):
        """Start, or start anew after a kill: with the weights that it began with."""
        self.model, self.version, self.updating, self.paused, self.adapters = (
            copy.deepcopy(self.start_model), "default", False, False, {},
        )  # fmt: skip
        self.group = None
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                fake.answer(self, None)

            def do_POST(self):
                fake.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

            def log_message(self, *arguments):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request, address):
                pass

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        if self.group is not None:
            self.group.close()
        self.stopped.set()

    def answer(self, handler, body):
        path = urlparse(handler.path).path
        with self.lock:
            self.calls[path] += 1
            planned = self.faults.get(path) or [None]
            fault = planned.pop(0)
            if fault == "kill":
                threading.Thread(target=self.stop, daemon=True).start()
        if fault in ("kill", "hang up"):
            handler.close_connection = True
            handler.connection.close()
            return
        if fault == "slow":
            time.sleep(4.0)
        if fault == "oom":
            return self.send(handler, 500, {"error": {"message": "out of memory", "code": 500}})
        if fault == "absent":
            return self.send(handler, 200, {})
        if fault == "refuse":
            return self.send(handler, 400, {"error": {"message": "the prompt is too long", "code": 400}})
        with self.lock:
            code, found = self.route(path, body)
        if fault == "short":
            choice = found["choices"][0]
            choice["token_ids"], choice["finish_reason"] = choice["token_ids"][:-1], "abort"
            choice["logprobs"]["content"] = choice["logprobs"]["content"][:-1]
        if fault == "stale":
            found["choices"][0]["weight_versions"] = [{"version": "7", "start": 0, "end": 1}]
        if fault == "garbage":
            found = {"choices": [{"token_ids": None}]}
        self.send(handler, code, found)

    def send(self, handler, code, found):
        data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def route(self, path, body):
        if path == "/health":
            return 200, {}
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in ("model", *self.adapters)]}
        if path in ("/pause", "/resume", "/init_weight_transfer_engine"):
            self.paused = path == "/pause"
            about = body.get("init_info")
            return self.join(**about) if about else (200, {})
        if path == "/get_world_size":
            return 200, {"world_size": 1}
        if path == "/start_weight_update":
            wrong = self.updating or not self.paused
            self.updating = True
            return (500 if wrong else 200), {}
        if path == "/update_weights":
            if not self.updating:
                return 500, {"error": "start_weight_update must be called before update_weights"}
            return self.update(**body["update_info"])
        if path == "/finish_weight_update":
            wrong, self.updating = not self.updating, False
            self.version = body.get("weight_version") or self.version
            return (500 if wrong else 200), {}
        if path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = load_adapter(self.model, Path(body["lora_path"]))
            return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."
        if path == "/v1/unload_lora_adapter":
            return (200 if self.adapters.pop(body["lora_name"], None) else 404), {}
        assert path == "/inference/v1/generate", path
        if body["model"] is not None and body["model"] not in self.adapters:
            return 404, {"error": f"the model {body['model']} does not exist"}
        return 200, self.write(body)

    def join(self, address, port, rank_offset, world_size, timeout_s):
        if self.group is not None:
            self.group.close()
        self.joined += 1
        self.group = join(address, port, rank_offset, world_size, device=torch.device("cpu"), timeout_s=timeout_s)
        return 200, {}

    def update(self, path=None, **about):
        if path is None and self.group is None:
            return 500, {"error": "no group"}
        weights = load_file(path) if path is not None else dict(self.group.receive(**about))
        self.received.append({} if path is not None else weights)
        self.model.load_state_dict(weights, strict=False)
        return 200, {}

    def write(self, body):
        asked = body["sampling_params"]
        self.requests.append(body)
        policy = CausalLMPolicy(
            self.adapters.get(body["model"], self.model),
            critic="none",
            eos_token_id=asked["stop_token_ids"] or None,
            sampling=TokenSampling(
                temperature=asked["temperature"] or 1.0, top_k=asked["top_k"] or None, top_p=asked["top_p"],
                min_new_tokens=asked["min_tokens"], allowed_tokens=asked["allowed_token_ids"],
            ),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(asked["seed"])
        found = generate(
            policy, torch.tensor([body["token_ids"]]), max_new_tokens=asked["max_tokens"], generator=generator,
            deterministic=asked["temperature"] == 0,
        )  # fmt: skip
        tokens = found.completions[0][found.completions[0] >= 0].tolist()
        ended = tokens[-1] in asked["stop_token_ids"]
        logprobs = [
            {"token_id": token, "logprob": float(each)} for token, each in zip(tokens, found.logprobs[0], strict=False)
        ]
        choice = {
            "index": 0, "token_ids": tokens, "finish_reason": "stop" if ended else "length",
            "logprobs": {"content": logprobs},
            "weight_versions": [{"version": self.version, "start": 0, "end": len(tokens)}],
        }  # fmt: skip
        return {"output_mode": "tokens", "choices": [choice]}


def load_adapter(model, folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).merge_and_unload()


@pytest.fixture
def serve():
    """A function that starts a `FakeVLLM` of a model; all are stopped at the end."""
    started = []

    def start(model):
        started.append(FakeVLLM(model))
        return started[-1]

    yield start
    for fake in started:
        fake.stop()
