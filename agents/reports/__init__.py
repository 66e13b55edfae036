"""Pages that a person reads: the report of a run, several runs compared, a run watched live. May import runs."""
