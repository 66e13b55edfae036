"""Evaluation of policies: samples, metrics, curves, token page. May import lm, functional, runs, textenvs."""
