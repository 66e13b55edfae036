"""Token problems small enough to compute the best policy exactly. May import envs, tokens and wrappers."""
