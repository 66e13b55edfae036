"""Verification: claims with an expected and a measured value, also for your own environment, model or policy."""
