"""Tasks that others made, each an optional extra: reasoning-gym's questions, TextArena's and TextWorld's games."""
