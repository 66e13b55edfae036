"""Tasks with exactly known answers: optimality gaps, KL bias, probes, tables. May import algorithms, text, textenvs."""
