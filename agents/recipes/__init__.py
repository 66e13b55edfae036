"""What the commands run, from flags to summary. May import everything but verification."""
