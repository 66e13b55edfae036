"""A run on disk and screen: folders, checkpoints, metrics, plots, processes. May import functional, reward_models."""
