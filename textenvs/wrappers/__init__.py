"""Rewards of texts: preference scores, ensembles of scorers, KL shaping. May import envs, lm and tokens."""
