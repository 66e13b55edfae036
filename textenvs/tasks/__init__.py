"""Tasks that others made, each an optional extra: reasoning-gym's questions, TextArena's games, OpenEnv's servers."""
