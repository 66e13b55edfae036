"""What a trained policy writes, measured: metrics, curves, the token page. May import lm, functional, runs,
textenvs."""
