"""Training on whole texts: collector, advantages, objective, KL controllers. May import core, functional, lm, runs."""
