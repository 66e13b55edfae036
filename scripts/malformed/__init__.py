"""Malformed inputs: what is thrown at the commands and Python calls (`table`), and what they answer (`run`)."""
