"""A run on disk and on screen: folders, checkpoints, metrics, progress, plots, processes. Imports nothing of ours."""
