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

register(
    "textenvs/MovieReview-v0",
    entry_point="reward_models.movie_review:movie_review",
    vector_entry_point="reward_models.movie_review:movie_review_vec",
)
register(
    "textenvs/TextGeneration-v0",
    entry_point="textenvs.factories:text_generation",
    vector_entry_point="textenvs.factories:text_generation_vec",
)
register(
    "textenvs/Dialogue-v0",
    entry_point="textenvs.factories:dialogue",
    vector_entry_point="textenvs.factories:dialogue_vec",
)
register(
    "textenvs/ReasoningGym-v0",
    entry_point="textenvs.tasks.reasoning_gym:reasoning_gym",
    vector_entry_point="textenvs.tasks.reasoning_gym:reasoning_gym_vec",
)
register(
    "textenvs/TextArena-v0",
    entry_point="textenvs.tasks.text_arena:text_arena",
    vector_entry_point="textenvs.tasks.text_arena:text_arena_vec",
)
register(
    "textenvs/TextWorld-v0",
    entry_point="textenvs.tasks.text_world:text_world",
    vector_entry_point="textenvs.tasks.text_world:text_world_vec",
)
register(
    "textenvs/OpenEnv-v0",
    entry_point="textenvs.tasks.open_env:open_env",
    vector_entry_point="textenvs.tasks.open_env:open_env_vec",
)
for _name, _ends in (("", "terminating"), ("Truncated", "truncating")):
    register(
        f"textenvs/ExactDialogue{_name}-v0",
        entry_point=f"textenvs.exact.dialogues:{_ends}",
        vector_entry_point=f"textenvs.exact.dialogues:{_ends}_vec",
    )
for _name in ("Spelling", "Sentiment", "Random"):
    register(
        f"textenvs/Exact{_name}-v0",
        entry_point=f"textenvs.exact.envs:exact_{_name.lower()}",
        vector_entry_point=f"textenvs.exact.envs:exact_{_name.lower()}_vec",
    )
