"""The proof that `textenvs verify` prints, and its commands. May import the rest of verification, and recipes."""
