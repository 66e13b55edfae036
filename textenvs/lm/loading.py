"""Loads models of transformers and adapters of peft: every weight comes from the file, or an error names those that do
not.

``from_pretrained`` alone fills missing weights with random numbers and says so in a warning at most.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from textenvs.lm.packed_forward import trunk_of
from textenvs.tokens.tokenizers import check_source

if TYPE_CHECKING:
    from peft import PeftModel

HEADS = r"^(lm_head|cls|score|classifier|qa_outputs|generator_lm_head|embed_out|output_projection|v_head|head)\b"
"""Weights of a checkpoint that a bare trunk has no use for."""
POOLERS = r"(^|\.)pooler\."
"""Weights of a trunk that are not on the way to its last hidden states."""
SHOWN = 4


def load_causal_lm(path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Any:
    """A causal LM in evaluation mode, from a directory or by name, its weights as ``dtype``; safetensors only.

    Raises:
        ValueError: none can be loaded, or weights are missing, unexpected or of another shape; the message names them.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, "causal language model", path, dtype, use_safetensors=True)


def load_trunk(path: str | os.PathLike[str]) -> Any:
    """A transformers model of text without a head, as `load_causal_lm`; heads in its checkpoint are not read."""
    from transformers import AutoModel

    return trunk_of(_load(AutoModel, "model", path, unread=HEADS, absent=POOLERS))


def load_classifier(path: str | os.PathLike[str]) -> Any:
    """A sequence classifier of transformers, as `load_causal_lm`."""
    from transformers import AutoModelForSequenceClassification

    return _load(AutoModelForSequenceClassification, "sequence classifier", path)


def _load(
    auto: Any,
    kind: str,
    path: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
    *,
    unread: str | None = None,
    absent: str | None = None,
    **options: Any,
) -> Any:
    name = os.fspath(path)
    check_source(name)
    with _one_error(f"{name}: no {kind} could be loaded from there"):
        model, found = auto.from_pretrained(name, dtype=dtype, output_loading_info=True, **options)
    for message in found["error_msgs"]:
        raise ValueError(f"{name}: no {kind} could be loaded from there: {message}")
    check_keys(name, _unlike(found["missing_keys"], absent), _unlike(found["unexpected_keys"], unread))
    check_numbers(name, model.state_dict())
    return model.eval()  # Any: the annotations of transformers' PreTrainedModel reject `model.to(device)`


@contextmanager
def _one_error(what: str) -> Iterator[None]:
    """Whatever transformers, safetensors and torch raise for a file that is missing or broken, as ValueError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as fault:
        raise ValueError(f"{what}: {fault}") from fault


def _unlike(names: Iterable[str], pattern: str | None) -> list[str]:
    return sorted(name for name in names if pattern is None or not re.search(pattern, name))


def check_keys(name: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise ValueError if a model's weights are ``missing`` in the file ``name`` or others are ``unexpected`` there."""
    faults = [
        f"{len(names)} {word} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for word, names in (("are missing", sorted(missing)), ("do not belong to it", sorted(unexpected)))
        if names
    ]
    if faults:
        raise ValueError(
            f"{name}: expected exactly the weights of the model that config.json describes; of those in the file "
            f"{' and '.join(faults)}. A wrapper's prefix (_orig_mod., module.), a lost shard or a model of another "
            "kind looks like this; missing weights would be random"
        )


def check_numbers(name: str, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError if there are NaN or infinite numbers in ``weights`` of the file ``name``."""
    for key, weight in weights.items():
        if weight.numel() and weight.is_floating_point() and not torch.stack(weight.aminmax()).isfinite().all():
            raise ValueError(f"{name}: expected finite weights, received NaN or infinite ones in {key}")


def load_peft(model: nn.Module, folder: str | Path, role: str, **options: Any) -> PeftModel:
    """``model`` under the adapter in ``folder``, called ``role``; ``options`` as for peft's ``from_pretrained``.

    Raises:
        ValueError: as `load_adapter`.
    """
    from peft import PeftModel

    with _one_error(f"{folder}: no adapter of this model could be loaded from there"):
        peft = PeftModel.from_pretrained(model, str(folder), adapter_name=role, **options)
    check_adapter(peft, folder, role)
    return peft


def load_adapter(peft: PeftModel, folder: str | Path, role: str) -> None:
    """Add the adapter in ``folder`` to ``peft`` as ``role``, frozen; ValueError if it cannot be read, or its weights
    are not exactly those of its layers in this model."""
    with _one_error(f"{folder}: no adapter of this model could be loaded from there"):
        peft.load_adapter(str(folder), adapter_name=role)
    check_adapter(peft, folder, role)


def check_adapter(peft: PeftModel, folder: str | Path, role: str) -> None:
    """Raise ValueError unless the adapter in ``folder`` has exactly the weights of ``role`` in ``peft``."""
    from peft import get_peft_model_state_dict

    from textenvs.lm.lora import ADAPTER_WEIGHTS

    with safe_open(Path(folder) / ADAPTER_WEIGHTS, "pt") as file:
        there = set(file.keys())
    ours = get_peft_model_state_dict(peft, adapter_name=role)
    check_keys(str(folder), ours.keys() - there, there - ours.keys())
    check_numbers(str(folder), ours)
