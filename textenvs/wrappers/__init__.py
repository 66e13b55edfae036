"""What a text earns: the preference score, the KL price, several scorers as one. May import envs, lm, tokens."""
