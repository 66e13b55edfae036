"""Token problems small enough that the best policy is computed, not trained."""
