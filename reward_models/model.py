"""`RewardModel`: a transformers backbone with a scalar head that reads the last real token.

A text is encoded as ``bos + prompt + completion``, then ``eos`` if it is finished. A completion that the token budget
cut has no ``eos``; training covers this case by cutting texts at random.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedTokenizerBase

from reward_models.classifier import as_classifier, as_reward_model, check_lists
from reward_models.files import DESCRIPTION, WEIGHTS, first_line, read_model, write_model
from reward_models.lora import ADAPTER, Adapter, AdapterBackbone, lasting_name
from reward_models.padding import num_positions, right_padded
from textenvs.lm.fast_paths import accelerate
from textenvs.lm.loading import load_trunk
from textenvs.lm.packed_forward import can_pack, hidden_states
from textenvs.lm.sizes import sizes
from textenvs.tokens.rows import PAD
from textenvs.tokens.tokenizers import load_tokenizer

Texts: TypeAlias = "Sequence[str] | Tensor"
Flags: TypeAlias = "Sequence[bool] | bool"
"""One for each text, or one for all."""
CALIBRATION = ("mean", "std")


class RewardModel(nn.Module):
    """Scores texts; higher is better. A scorer of `textenvs`: ``model(prompts, completions) -> [N]``.

    ``score = (raw - mean) / std``, where ``raw`` is the head's output at the last real token and `calibrate` sets
    ``mean`` and ``std`` on reference samples, so that a score of 1 is one standard deviation above their mean.

    Args:
        backbone: any transformers model whose output has ``last_hidden_state``.
        tokenizer: its tokenizer; needs an eos token.
        max_length: longest sequence, tokens; longer ones lose their oldest. Default: the backbone's limit.

    Raises:
        ValueError: the tokenizer has no eos token, or more entries than the backbone embeds.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None
    ) -> None:
        super().__init__()
        config: Any = backbone.config
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: expected an eos token, which marks a finished text, received none")
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most {config.vocab_size} entries, which the backbone embeds, received "
                f"{len(tokenizer)}"
            )
        accelerate(backbone)
        limit = num_positions(backbone)
        self.backbone: Any = backbone
        self.autocast: torch.dtype | None = None
        """Type of the backbone's matrix products, bfloat16 for instance; not saved. None: the weights' own."""
        self.tokenizer: Any = tokenizer
        self.max_length = limit if max_length is None else min(max_length, limit)
        width = getattr(config, "word_embed_proj_dim", config.hidden_size)  # OPT projects its last states
        self.head = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.head.weight, std=(width + 1) ** -0.5)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self._backbone_takes = frozenset(inspect.signature(backbone.forward).parameters)

    @classmethod
    def from_backbone(
        cls, name: str | Path, *, max_length: int | None = None, lora_rank: int | None = None, lora_alpha: float = 32.0
    ) -> RewardModel:
        """A new, unfitted reward model on the pretrained model of a directory, or a name that transformers knows.

        With ``lora_rank`` the model is frozen: an adapter of that rank, scaled by ``lora_alpha / lora_rank``, and the
        head are trained and saved. Head and adapter draw from torch's global generator.

        Raises:
            ValueError: model or tokenizer cannot be loaded; the message names which.
        """
        tokenizer = load_tokenizer(name)
        backbone = (
            load_trunk(name) if lora_rank is None else AdapterBackbone.new(name, rank=lora_rank, alpha=lora_alpha)
        )
        return cls(backbone, tokenizer, max_length=max_length)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.weight.device

    def raw(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Uncalibrated rewards ``[N]`` of rows ``[N, T]``, read at the last position where ``attention_mask``.

        Padding may be on either side.
        """
        real, steps = attention_mask.bool(), torch.arange(input_ids.shape[1], device=input_ids.device)
        lengths = real.sum(dim=1)
        right = steps < lengths[:, None]
        if not bool((real == right).all()):  # padding goes to the right, and the model counts positions itself
            input_ids = input_ids.gather(1, (~real).to(torch.uint8).argsort(dim=1, stable=True))
        row, last = torch.arange(len(lengths), device=lengths.device), (lengths - 1).clamp(min=0)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            if can_pack(self.backbone):
                read = hidden_states(self.backbone, input_ids, lengths, row, last)
            else:
                inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": right.long()}
                if "use_cache" in self._backbone_takes:
                    inputs["use_cache"] = False
                read = self.backbone(**inputs).last_hidden_state[row, last]
        rewards: Tensor = self.head(read.to(self.head.weight.dtype))
        return rewards.squeeze(-1).float()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Calibrated scores ``[N]`` of token rows ``[N, T]`` (ids) and their mask ``[N, T]`` (True or 1 = real)."""
        return (self.raw(input_ids, attention_mask) - self.mean) / self.std

    def __call__(self, prompts: Texts, completions: Texts, *, finished: Flags = True) -> np.ndarray | Tensor:
        """``model(prompts, completions)`` on text is `score`; ``model(input_ids, attention_mask)`` is `forward`."""
        if isinstance(prompts, Tensor) or isinstance(completions, Tensor):
            return super().__call__(prompts, completions)
        return self.score(prompts, completions, finished=finished)

    def score(
        self, prompts: Sequence[str], completions: Sequence[str], *, finished: Flags = True, batch_size: int = 128
    ) -> np.ndarray:
        """Calibrated scores ``[N]`` float32 of N texts ``prompt + completion``, which end with an ``eos`` if finished.

        Raises:
            ValueError: a text in place of a list of texts; the numbers of prompts, completions and flags differ.
        """
        check_lists(prompts, completions)
        if len(prompts) != len(completions):
            raise ValueError(f"completions: expected {len(prompts)}, one for each prompt, received {len(completions)}")
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        return self.score_rows(self.encode(texts, finished=finished), batch_size=batch_size)

    def score_tokens(self, prompts: ArrayLike, completions: ArrayLike, *, batch_size: int = 128) -> np.ndarray:
        """Calibrated scores ``[N]`` float32 of this model's token ids, in batches of ``batch_size`` rows.

        ``prompts [N, P]`` and ``completions [N, T]``, an ``eos`` included, are padded with ``PAD = -1`` anywhere.

        Raises:
            ValueError: other shapes, or ids that the backbone does not embed.
        """
        parts = [np.asarray(part) for part in (prompts, completions)]
        if any(part.ndim != 2 for part in parts) or len(parts[0]) != len(parts[1]):
            raise ValueError(f"expected [N, P] prompts and [N, T] completions, received {[p.shape for p in parts]}")
        joint = np.concatenate(parts, axis=1)
        if joint.size and (joint.max() >= self.backbone.config.vocab_size or joint.min() < PAD):
            raise ValueError(
                f"expected token ids in [0, {self.backbone.config.vocab_size}) or {PAD}, received {joint.min()} to "
                f"{joint.max()}: do policy and reward model share a tokenizer?"
            )
        bos = self.tokenizer.bos_token_id
        rows = [row[row != PAD].tolist() for row in joint]
        rows = [row if row[:1] == [bos] or bos is None else [bos, *row] for row in rows]
        return self.score_rows(rows, batch_size=batch_size)

    @torch.no_grad()
    def score_rows(self, rows: Sequence[Sequence[int]], *, batch_size: int = 128) -> np.ndarray:
        """Calibrated scores ``[N]`` float32 of whole token rows, in batches of similar length, without dropout."""
        was_training = self.training
        self.eval()
        scores = np.empty(len(rows), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        longest = min(len(rows[order[-1]]), self.max_length) if order else 1
        batch_size = min(batch_size, max(1, sizes(self.device).prefill_tokens // max(1, longest)))
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            tokens, mask = self.pad([rows[i] for i in index])
            scores[index] = self.forward(tokens, mask).cpu().numpy()
        self.train(was_training)
        return scores

    def encode(self, texts: Sequence[str], *, finished: Flags = True) -> list[list[int]]:
        """Token rows ``bos + text (+ eos if finished)``, without bos if the tokenizer has none."""
        if not texts:
            return []
        flags = [finished] * len(texts) if isinstance(finished, bool) else list(finished)
        if len(flags) != len(texts):
            raise ValueError(f"finished: expected {len(texts)} flags, received {len(flags)}")
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        bodies = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        eos = self.tokenizer.eos_token_id
        return [[*bos, *body, eos] if flag else [*bos, *body] for body, flag in zip(bodies, flags, strict=True)]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """`right_padded` on the model's device."""
        tokens, mask = right_padded(rows, self.max_length)
        return tokens.to(self.device), mask.to(self.device)

    @torch.no_grad()
    def calibrate(self, rows: Sequence[Sequence[int]]) -> None:
        """Set ``mean`` and ``std`` so that the scores of these token rows have mean 0 and standard deviation 1.

        Raises:
            ValueError: fewer than two rows, or all have the same score.
        """
        if len(rows) < 2:
            raise ValueError(f"calibrate: expected at least two rows, received {len(rows)}")
        self.mean.zero_()
        self.std.fill_(1.0)
        raw = self.score_rows(rows).astype(np.float64)
        if not np.isfinite(raw).all() or raw.std() < 1e-8:
            raise ValueError(f"calibrate: expected finite rewards that differ, received a std of {raw.std()}")
        self.mean.fill_(raw.mean())
        self.std.fill_(raw.std())

    def save(self, path: str | Path, whole: Mapping[str, Tensor] | None = None) -> None:
        """Write a model that ``AutoModelForSequenceClassification`` loads, with the head's raw output as its logit.

        The calibration is in ``reward_model.json``: ``score = (logit - mean) / std``. An adapter is saved in
        ``adapter/`` with the name of the model below, and only `load` reads it. ``whole`` are weights in place of the
        model's own, by its ``state_dict``'s names.

        Raises:
            ValueError: an adapter over a model without a name, or a shared trunk without an adapter.
        """
        folder = Path(path)
        about: dict[str, Any] = {name: float(getattr(self, name)) for name in CALIBRATION}
        config, tokenizer = self.backbone.config, self.tokenizer
        own = self.state_dict() if whole is None else whole
        weights: dict[str, Tensor] = {"head.weight": own["head.weight"]}
        if isinstance(self.backbone, Adapter):
            about["base"] = lasting_name(self.backbone.base_name)
        else:
            weights |= {name: part for name, part in own.items() if name.startswith("backbone.")}
            config, tokenizer, weights = as_classifier(self.backbone, tokenizer, weights)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (DESCRIPTION, WEIGHTS):  # written last: a kill leaves no new weights with an old calibration
            (folder / name).unlink(missing_ok=True)
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if "base" in about:
            self.backbone.save(folder / ADAPTER, whole)
        write_model(folder, weights, max_length=self.max_length, **about)

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | torch.device = "cpu", backbone: nn.Module | None = None
    ) -> RewardModel:
        """The model that `save` wrote, in evaluation mode (dropout off).

        ``backbone`` is, for an adapter, a trunk with that adapter already loaded; None loads it.

        Raises:
            ValueError: no reward model of this version in the folder, or a damaged one.
        """
        folder = Path(path)
        description, config, weights = read_model(folder)
        base = description.get("base")
        with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
            if base is None:
                new: Any = AutoModel.from_config
                backbone = new(config, dtype=torch.float32)
            elif backbone is None:
                backbone = AdapterBackbone.load(base, folder / ADAPTER)
            model = cls(backbone, load_tokenizer(folder), max_length=description["max_length"])
        weights |= {name: torch.tensor(float(description[name])) for name in CALIBRATION}
        try:
            whole = base is None or weights.keys() != {"head.weight", *CALIBRATION}
            model.load_state_dict(as_reward_model(weights, model.backbone), strict=whole)
        except RuntimeError as error:
            raise ValueError(f"{folder}: expected weights of its configuration ({first_line(error)})") from error
        return model.to(device).eval()
