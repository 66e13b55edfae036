"""Learning from whole texts: collector, advantages, objective, KL controllers. May import the core, functional, lm,
runs."""
