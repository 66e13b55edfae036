"""Ensembles of reward models, whose disagreement measures uncertainty; members differ in all that a seed decides.

Sources: whole models, Coste et al. 2023 (arXiv:2310.02743); adapters over one frozen model, Zhang et al. 2024
(arXiv:2401.16635), Zhai et al. 2024 (arXiv:2401.00243); shared errors, Eisenstein et al. 2023 (arXiv:2312.09244).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from reward_models.aside import write_json
from reward_models.files import base_of, read_description
from reward_models.lora import ADAPTER, AdapterBackbone
from reward_models.model import Flags, RewardModel

DESCRIPTION = "reward_ensemble.json"
FORMAT = "textenvs reward ensemble"
VERSION = 1
SEEDS_APART = 1000
"""Member i of an ensemble has the ensemble's seed + 1000 i, so ensembles of neighboring seeds share no member."""


class RewardEnsemble:
    """Scores ``[K, N]`` of K members, and their mean ``[N]``; a scorer of `textenvs`, as a `RewardModel` is.

    The members have one vocabulary, and are calibrated on the same texts, so that their units agree.

    Raises:
        ValueError: no member, or different vocabularies.
    """

    def __init__(self, members: Sequence[RewardModel]) -> None:
        if not members:
            raise ValueError("members: expected at least one reward model, received none")
        vocabularies = [member.tokenizer.get_vocab() for member in members]
        if any(vocabulary != vocabularies[0] for vocabulary in vocabularies):
            raise ValueError("members: expected equal tokenizers, received different ones: use a list of reward models")
        self.members, self.tokenizer = tuple(members), members[0].tokenizer

    def __len__(self) -> int:
        return len(self.members)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], *, finished: Flags = True) -> np.ndarray:
        """The members' mean score ``[N]``; see `RewardModel.score`."""
        return np.asarray(self.score_each(prompts, completions, finished=finished).mean(axis=0))

    def score_each(self, prompts: Sequence[str], completions: Sequence[str], *, finished: Flags = True) -> np.ndarray:
        """Each member's scores ``[K, N]``; see `RewardModel.score`."""
        return np.stack([member.score(prompts, completions, finished=finished) for member in self.members])

    def score_tokens(self, prompts: ArrayLike, completions: ArrayLike) -> np.ndarray:
        """The members' mean score ``[N]`` of rows of token ids; see `RewardModel.score_tokens`."""
        each = np.stack([member.score_tokens(prompts, completions) for member in self.members])
        return np.asarray(each.mean(axis=0))

    def save(self, path: str | Path) -> None:
        """Write each member into a folder of its own, which `RewardModel.load` reads, too."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DESCRIPTION).unlink(missing_ok=True)  # written last: without it the folder is no ensemble
        names = [f"member_{index}" for index in range(len(self.members))]
        for name, member in zip(names, self.members, strict=True):
            member.save(folder / name)
        write_json(folder / DESCRIPTION, {"format": FORMAT, "version": VERSION, "members": names})

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | torch.device = "cpu", backbones: Sequence[nn.Module] | None = None
    ) -> RewardEnsemble:
        """The ensemble that `save` wrote, in evaluation mode; a language model with several adapters is loaded once.

        ``backbones`` are one a member with its adapter already loaded, as for `RewardModel.load`.

        Raises:
            ValueError: no ensemble of this version in the folder, or a damaged one.
        """
        folders = member_folders(path)
        members: list[RewardModel] = []
        trunks: dict[str, AdapterBackbone] = {}
        for folder, backbone in zip(folders, [None] * len(folders) if backbones is None else backbones, strict=True):
            base = base_of(folder)
            if backbone is None and base in trunks:
                backbone = trunks[base].load_beside(folder / ADAPTER)
            members.append(RewardModel.load(folder, device=device, backbone=backbone))
            if base is not None:
                trunks.setdefault(base, members[-1].backbone)
        return cls(members)


def is_ensemble(path: str | Path) -> bool:
    """Whether the folder holds an ensemble."""
    return (Path(path) / DESCRIPTION).exists()


def member_folders(path: str | Path) -> list[Path]:
    """The folders of an ensemble's members; ValueError without an ensemble of this version."""
    folder = Path(path)
    names = read_description(folder / DESCRIPTION, FORMAT, VERSION).get("members")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder} holds a damaged reward ensemble: {DESCRIPTION} lists the members {names!r}")
    return [folder / name for name in names]


def new_members(
    name: str | Path, num_members: int, *, seed: int, lora_rank: int | None = None, device: str | torch.device = "cpu"
) -> Iterator[tuple[int, RewardModel]]:
    """Unfitted members, each with the seed to fit it with; fit one before taking the next.

    They start from the model of a directory or name, with seeds `SEEDS_APART` from one to the next. With ``lora_rank``
    all share one language model, and only the newest member's adapter is trainable; else members are whole models.

    Raises:
        ValueError: the model cannot be loaded.
    """
    first: RewardModel | None = None
    for index in range(num_members):
        own_seed = seed + SEEDS_APART * index
        torch.manual_seed(own_seed)
        if first is None or not isinstance(first.backbone, AdapterBackbone):
            member = RewardModel.from_backbone(name, lora_rank=lora_rank)
        else:
            member = RewardModel(first.backbone.beside(), first.tokenizer, max_length=first.max_length)
            member.backbone.learn_alone()
        first = first or member
        yield own_seed, member.to(device)
