"""Control tasks beside Stable-Baselines3 with rl-zoo's settings."""
