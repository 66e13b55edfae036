"""Games of words: a small model taught on random play, then trained by the game. May import algorithms, lm, text."""
