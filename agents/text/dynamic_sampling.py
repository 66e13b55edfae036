"""Fills a rollout with groups that teach something: those of equal returns are replaced by groups drawn anew.

Source: DAPO, Yu et al. 2025, section 3.2 and eq. 11 (arXiv:2503.14476), which draws without bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.functional.group_advantages import flat_groups
from agents.functional.masked import fill_masked
from agents.rollout import Rollout
from textenvs.tokens.rows import TokenRows

Drawn = tuple[Rollout, TokenRows, dict[str, float]]
"""A batch of texts, as training and as people read it, and its metrics."""


def fill_rollout(draw: Callable[[], Drawn], group_size: int, most: int) -> Drawn:
    """A batch from ``draw`` whose flat groups are replaced by others from up to ``most`` more batches.

    Groups stay in the order in which they were drawn; the informative ones that are too many are left out. If there are
    too few after the last draw, flat ones, first drawn first, fill the batch: its shape never changes.
    """
    drawn = [draw()]
    if not most:
        return drawn[0]
    flat = _flat(drawn[0][0], group_size)
    number = len(flat)
    while int((~flat).sum()) < number and len(drawn) <= most:
        drawn.append(draw())
        flat = torch.cat([flat, _flat(drawn[-1][0], group_size)])
    chosen = torch.argsort(flat.int(), stable=True)[:number]
    index = (chosen[:, None] * group_size + torch.arange(group_size)).flatten().numpy()
    rollouts, texts, metrics = zip(*drawn, strict=True)
    mean = {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]}
    found = {name: value * len(drawn) if name.startswith("time/") else value for name, value in mean.items()}
    found["rollout/draws"] = float(len(drawn))
    found["rollout/groups_dropped"] = float(flat.float().mean())
    found["rollout/groups_filled"] = float(flat[chosen].float().mean())
    rollout, rows = (_rows([vars(part) for part in parts], index) for parts in (rollouts, texts))
    return Rollout(**rollout), TokenRows(**rows), found


def _flat(rollout: Rollout, group_size: int) -> Tensor:
    return flat_groups(fill_masked(rollout.rewards, rollout.mask).sum(1), group_size).cpu()


def _rows(parts: Sequence[Any], index: NDArray[np.int64]) -> Any:
    """The rows ``index`` of ``parts``, one below the other: arrays, tensors, dictionaries of them, or None."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: _rows([part[name] for part in parts], index) for name in first}
    if first is None:
        return None
    return torch.cat(list(parts))[index] if isinstance(first, Tensor) else np.concatenate(parts)[index]
