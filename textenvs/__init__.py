"""Text generation as Gymnasium environments. Importing it registers the ``textenvs/...`` ids; models load when needed.

Here: token rows, prompts, the vector environment and its scalar view, the preference reward and KL shaping. Not here:
agents that learn, and how reward models are trained.
"""

from gymnasium.envs.registration import register

from textenvs.preference import PreferenceReward
from textenvs.rows import PAD, TokenRows
from textenvs.scalar import TokenEnv
from textenvs.shaping import KLShaping
from textenvs.vector import TokenVectorEnv

__all__ = ["PAD", "KLShaping", "PreferenceReward", "TokenEnv", "TokenRows", "TokenVectorEnv"]

register(
    "textenvs/MovieReview-v0",
    entry_point="textenvs.entry:movie_review",
    vector_entry_point="textenvs.entry:movie_review_vec",
)
register(
    "textenvs/TextGeneration-v0",
    entry_point="textenvs.entry:text_generation",
    vector_entry_point="textenvs.entry:text_generation_vec",
)
for _name in ("Spelling", "Sentiment", "Random"):
    register(
        f"textenvs/Exact{_name}-v0",
        entry_point=f"textenvs.exact_envs:exact_{_name.lower()}",
        vector_entry_point=f"textenvs.exact_envs:exact_{_name.lower()}_vec",
    )
