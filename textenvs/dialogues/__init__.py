"""Dialogues: any Gymnasium environment over strings as a token environment."""
