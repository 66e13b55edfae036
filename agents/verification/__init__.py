"""The proof, as claims with an expected and a measured figure; also for your own environment, model or policy."""
