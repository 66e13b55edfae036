"""Stage 3: PPO, GRPO, RLOO or REINFORCE on a language model, with its parts built from one configuration."""
