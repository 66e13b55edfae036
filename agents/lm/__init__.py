"""A causal LM as a policy: decoding, log-probs, values, adapters, memory. May import the core, functional, textenvs."""
