"""Checks of a user's language model (`verify --model`), and model families. May import lm, text and their imports."""
