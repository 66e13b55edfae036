"""Tasks that others made, each an optional extra: of reasoning-gym, TextArena, TextWorld and OpenEnv's servers."""
