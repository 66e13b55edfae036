"""A run on disk and on screen: folders, checkpoints, metrics, plots, processes. May import functional, reward_models."""
