"""A run on disk and on screen: folders, checkpoints, metrics, progress, plots, processes. May import functional and reward_models."""
