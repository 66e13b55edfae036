"""Text generation as Gymnasium environments. Importing it registers the ``textenvs/...`` ids; models load when needed.

Token rows, prompts, the vector environment and its scalar view, the preference reward and KL shaping.
"""

from gymnasium.envs.registration import register

from textenvs.dialogues.vector import DialogueVectorEnv
from textenvs.envs.scalar import TokenEnv
from textenvs.envs.vector import TokenVectorEnv
from textenvs.tokens.rows import PAD, TokenRows
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

__all__ = ["PAD", "DialogueVectorEnv", "KLShaping", "PreferenceReward", "TokenEnv", "TokenRows", "TokenVectorEnv"]

for _id, _module, _name in (
    ("MovieReview", "reward_models.movie_review", "movie_review"),
    ("TextGeneration", "textenvs.factories", "text_generation"),
    ("Dialogue", "textenvs.factories", "dialogue"),
    ("ReasoningGym", "textenvs.tasks.reasoning_gym", "reasoning_gym"),
    ("TextArena", "textenvs.tasks.text_arena", "text_arena"),
    ("TextWorld", "textenvs.tasks.text_world", "text_world"),
    ("OpenEnv", "textenvs.tasks.open_env", "open_env"),
    ("ExactDialogue", "textenvs.exact.dialogues", "terminating"),
    ("ExactDialogueTruncated", "textenvs.exact.dialogues", "truncating"),
    ("ExactSpelling", "textenvs.exact.envs", "exact_spelling"),
    ("ExactSentiment", "textenvs.exact.envs", "exact_sentiment"),
    ("ExactRandom", "textenvs.exact.envs", "exact_random"),
):
    register(f"textenvs/{_id}-v0", entry_point=f"{_module}:{_name}", vector_entry_point=f"{_module}:{_name}_vec")
