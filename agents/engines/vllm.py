"""A vLLM server as an engine, over its native protocol: token ids in, token ids and log-probs out, weights by files or
by broadcast.

Weights go as ``agents.engines.transfer`` takes them, or as a LoRA adapter (``/v1/load_lora_adapter``). The server needs
the flags that ``textenvs serve`` gives it. Written against vLLM 0.32.
"""

from __future__ import annotations

import http.client
import json
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from safetensors.torch import save_file
from torch import Tensor

from agents.engines.broadcast import Broadcast
from agents.engines.protocol import EngineError, Sampling, Written
from agents.engines.turns import write_dialogues
from reward_models.aside import named_faults
from textenvs.tokens.end_tokens import end_tokens
from textenvs.tokens.rows import PAD, pad_rows

CONNECTIONS = 256
"""Most rows that are asked for at a time; the server has its own limit."""


class VLLMEngine:
    """Writes by the model that a vLLM server holds; a request for each row, so that finished rows are never lost.

    What the server does not answer, or answers short, or by other weights than it was sent, is asked for again, after
    it is healthy and has the weights: also by a server that was killed and started anew.

    Args:
        url: of the server, such as "http://host:8000".
        transfer: how weights get there: through a folder, or by `Broadcast`; as the server was started.
        folder: that both sides reach; None: a temporary one.
        adapter_only: ``update`` takes a LoRA adapter, by peft's names and with alpha equal to its rank; by a folder.
        timeout_s: seconds for an answer.
        retries: times that a row or an update is asked for again.
        patience_s: seconds to wait for a server that does not answer before each retry.

    Raises:
        ValueError: for no URL, or an adapter by broadcast.
    """

    local = False

    def __init__(
        self,
        url: str,
        *,
        transfer: Literal["folder", "broadcast"] = "folder",
        folder: str | Path | None = None,
        adapter_only: bool = False,
        timeout_s: float = 600.0,
        retries: int = 3,
        patience_s: float = 300.0,
    ) -> None:
        known = False
        with suppress(ValueError):  # of a port that is no number
            known = bool(urlsplit(url).hostname) and urlsplit(url).port != 0 and url.startswith(("http://", "https://"))
        if not known:
            raise ValueError(f"engine: expected the URL of a server, such as http://host:8000, received {url!r}")
        if transfer not in ("folder", "broadcast") or (transfer == "broadcast" and adapter_only):
            raise ValueError(f'transfer: expected "folder", or "broadcast" of whole models, received {transfer!r}')
        self.url, self.timeout_s, self.retries, self.patience_s = url.rstrip("/"), timeout_s, retries, patience_s
        self._own = tempfile.TemporaryDirectory(prefix="textenvs-weights-")
        self.folder = Path(self._own.name if folder is None else folder).resolve()
        self.adapter_only = adapter_only
        self._broadcast = Broadcast(self.url, self._post, timeout_s) if transfer == "broadcast" else None
        self.version, self._sends = 0, False
        self._finished: dict[str, tuple[list[int], list[float], str]] = {}

    def generate(self, prompts: Tensor, sampling: Sampling) -> Written:
        """See `Engine`; a row depends on its seed alone, not on what is written beside it; ValueError if the server
        refuses a request, with its reason."""
        if sampling.seeds is None:
            before, after = sampling.other_rows
            drawn = torch.randint(2**31, (before + len(prompts) + after,), generator=sampling.generator)
            sampling = replace(sampling, seeds=tuple(drawn[before : before + len(prompts)].tolist()))
        if sampling.dialogue is not None:
            return write_dialogues(self, prompts, sampling)
        asked = self._requests(prompts, sampling)
        self._write(asked, sampling)
        found = [self._finished[key] for key in asked]
        self._finished.clear()
        ids = torch.from_numpy(pad_rows([tokens for tokens, _, _ in found], sampling.max_new_tokens))
        logprobs = torch.zeros(ids.shape)
        logprobs[ids != PAD] = torch.tensor([each for _, row, _ in found for each in row])
        version = torch.full(ids.shape, self.version)
        columns = (each.to(prompts.device) for each in (ids, logprobs, version))
        ids, logprobs, version = columns
        return Written(ids, logprobs, [reason for _, _, reason in found], version)

    def update(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine`; without tensors another process sends them, and this one only expects their version."""
        before, self.version = self.version, version
        self._finished.clear()
        if self._broadcast is not None:
            self._sends = self._broadcast.take(named_tensors)
            if self._sends:
                self._again(self._send, loads=False)
            return
        tensors = {name: tensor.cpu().contiguous() for name, tensor in named_tensors}
        self._sends = bool(tensors)
        if not tensors:
            return
        target = self._path(version)
        target.mkdir(parents=True, exist_ok=True)
        if self.adapter_only:
            (target / "adapter_config.json").write_text(json.dumps(_adapter_config(tensors)))
        with named_faults(target):
            save_file(tensors, target / ("adapter_model.safetensors" if self.adapter_only else "model.safetensors"))
        self._again(self._send, loads=False)
        if before != version and self._path(before).is_dir():
            shutil.rmtree(self._path(before))
            if self.adapter_only:
                with suppress(EngineError, ValueError):  # a server that was started anew does not hold it
                    self._post("/v1/unload_lora_adapter", {"lora_name": f"version-{before}"})

    def close(self) -> None:
        """Delete the temporary folder, and leave the group."""
        self._own.cleanup()
        if self._broadcast is not None:
            self._broadcast.drop()

    def _requests(self, prompts: Tensor, sampling: Sampling) -> list[str]:
        """Each row's request, as text, which is also the row's name."""
        rules, ends = sampling.rules, list(end_tokens(sampling.eos_token_id))
        shared: dict[str, Any] = {
            "temperature": 0.0 if sampling.greedy else rules.temperature,
            "top_k": rules.top_k or 0,
            "top_p": rules.top_p,
            "min_tokens": rules.min_new_tokens,
            "allowed_token_ids": None if rules.allowed_tokens is None else list(rules.allowed_tokens),
            "stop_token_ids": ends,
            "ignore_eos": True,  # the model's own; what ends a text is above
            "logprobs": 0,
            "detokenize": False,
        }
        requests = []
        for row, seed in zip(prompts.cpu(), sampling.seeds or (), strict=True):
            tokens = row[row != PAD].tolist()
            room = sampling.max_new_tokens if sampling.max_tokens is None else sampling.max_tokens - len(tokens)
            own = {"max_tokens": min(sampling.max_new_tokens, room), "seed": seed}
            model = f"version-{self.version}" if self.adapter_only else None  # the one that is served
            requests.append(json.dumps({"model": model, "token_ids": tokens, "sampling_params": shared | own}))
        return requests

    def _write(self, asked: list[str], sampling: Sampling) -> None:
        """Finish all rows that are ``asked`` for; rows that fail are asked for again, after all others are done."""
        connections = min(sampling.max_concurrent_rows or CONNECTIONS, CONNECTIONS)

        def write(request: str) -> EngineError | None:
            try:
                self._finished[request] = self._row(json.loads(request))
            except EngineError as fault:
                return fault
            return None

        def attempt() -> None:
            missing = [request for request in dict.fromkeys(asked) if request not in self._finished]
            with ThreadPoolExecutor(connections) as pool:
                faults = [fault for fault in pool.map(write, missing) if fault is not None]
            if faults:
                raise EngineError(f"{len(faults)} of {len(asked)} rows are missing: {faults[0]}")

        self._again(attempt)

    def _again(self, attempt: Callable[[], None], *, loads: bool = True) -> None:
        """``attempt``, and up to ``retries`` times more, once the server is healthy; with ``loads`` has the weights."""
        for left in range(self.retries, -1, -1):
            try:
                return attempt()
            except EngineError as fault:
                if not left:
                    raise EngineError(f"{fault}; given up after {self.retries + 1} attempts") from fault
                warnings.warn(f"{fault}; trying again", stacklevel=4)
            self._recover(loads=loads)

    def _recover(self, *, loads: bool) -> None:
        """Wait until the server is healthy, and with ``loads`` has the weights, which it is sent again."""
        give_up = time.monotonic() + self.patience_s
        while time.monotonic() < give_up:
            with suppress(EngineError):
                self._post("/health", get=True)
                if not loads or self._is_loaded():
                    return
                if self._sends:
                    self._send()
                    continue
            time.sleep(min(1.0, self.patience_s / 10))

    def _is_loaded(self) -> bool:
        if self.adapter_only:
            return f"version-{self.version}" in [each["id"] for each in self._post("/v1/models", get=True)["data"]]
        return bool(self._post("/weight_info", get=True)["weight_version"] == str(self.version))

    def _row(self, request: dict[str, Any]) -> tuple[list[int], list[float], str]:
        """Tokens, their log-probs and why they end; EngineError if the answer is no whole row by the weights that the
        server was sent."""
        answer = self._post("/inference/v1/generate", request)
        try:
            choice = answer["choices"][0]
            tokens, reason = list(choice["token_ids"]), str(choice["finish_reason"])
            logprobs = [float(each["logprob"]) for each in choice["logprobs"]["content"]]
            versions = {each["version"] for each in choice["weight_versions"]}
        except (KeyError, IndexError, TypeError, ValueError) as fault:
            raise EngineError(f"{self.url}: expected tokens with log-probs, received {answer!s:.200}") from fault
        budget, ends = request["sampling_params"]["max_tokens"], request["sampling_params"]["stop_token_ids"]
        whole = len(tokens) == budget or (tokens and tokens[-1] in ends)
        if not whole or len(tokens) > budget or len(logprobs) != len(tokens):
            raise EngineError(
                f"{self.url}: answered short: {len(tokens)} tokens of {budget}, {len(logprobs)} log-probs, {reason!r}"
            )
        if not self.adapter_only and versions != {str(self.version)}:
            raise EngineError(f"{self.url}: expected weights of version {self.version}, received {sorted(versions)}")
        return tokens, logprobs, reason

    def _send(self) -> None:
        """Have the server load the weights."""
        path = self._path(self.version)
        if self.adapter_only:
            self._post("/v1/load_lora_adapter", {"lora_name": path.name, "lora_path": str(path), "load_inplace": True})
            return
        if self._broadcast is None:
            self._post("/init_weight_transfer_engine", {"init_info": {}})
        else:
            self._broadcast.join()
        self._post("/pause?mode=wait")  # clears the cache of prefixes, too
        try:
            self._post("/start_weight_update")
            if self._broadcast is None:
                self._post("/update_weights", {"update_info": {"path": str(path / "model.safetensors")}})
            else:
                self._broadcast.send()
            self._post("/finish_weight_update", {"weight_version": str(self.version)})
        except EngineError:
            with suppress(EngineError):  # an update that is left open would be in the next one's way
                self._post("/finish_weight_update")
            raise
        finally:
            with suppress(EngineError):
                self._post("/resume")

    def _path(self, version: int) -> Path:
        return self.folder / f"version-{version}"

    def _post(self, path: str, body: dict[str, Any] | None = None, *, get: bool = False) -> dict[str, Any]:
        """The server's answer.

        Raises:
            EngineError: if there is none in time, or the server failed.
            ValueError: if it refused the request.
        """
        data = None if get else json.dumps(body or {}).encode()
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=self.timeout_s) as answer:
                text = answer.read()
        except urllib.error.HTTPError as fault:
            said = f"{self.url}{path}: answered {fault.code}: {fault.read().decode(errors='replace'):.300}"
            if fault.code in (400, 401, 403, 422):
                raise ValueError(said) from fault
            raise EngineError(said) from fault
        except (OSError, http.client.HTTPException) as fault:
            raise EngineError(f"{self.url}{path}: no answer: {fault or type(fault).__name__}") from fault
        try:
            found: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError:  # some routes say "Success" and no more
            return {}
        return found


def _adapter_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Of an adapter whose alpha equals its rank, as peft writes it."""
    inner = {name: tensor for name, tensor in tensors.items() if ".lora_A." in name}
    rank = next(iter(inner.values())).shape[0]
    layers = sorted({name.partition(".lora_A.")[0].rpartition(".")[2] for name in inner})
    return {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": layers, "bias": "none"}
