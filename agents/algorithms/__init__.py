"""The front door: PPO, TRPO, GRPO, RLOO and REINFORCE on whatever environment they are given. May import all rooms
but recipes."""
