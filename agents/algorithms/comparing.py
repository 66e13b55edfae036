"""The algorithms without a critic: they compare whole texts."""

from __future__ import annotations

from agents.algorithms.text import TextAlgorithm


class GRPO(TextAlgorithm):
    """Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300): texts of one prompt are compared.

    The preset charges the KL in the reward and does not divide by the group's deviation (Dr. GRPO, arXiv:2503.20783);
    ``TextAgentConfig.for_algorithm("grpo")`` is the paper's. Arguments and errors are `TextAlgorithm`'s.
    """

    name = "grpo"


class RLOO(TextAlgorithm):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740): each text against the mean of its prompt's
    others. Arguments and errors are `TextAlgorithm`'s."""

    name = "rloo"


class REINFORCE(TextAlgorithm):
    """REINFORCE (Williams 1992) on whole texts, against the mean return of the batch. Arguments and errors are
    `TextAlgorithm`'s."""

    name = "reinforce"
