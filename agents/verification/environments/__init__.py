"""Checks of a user's environment (`verify --env`): contract, seeds, dialogues, learning. May import control."""
