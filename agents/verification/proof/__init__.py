"""The proof that `textenvs verify` prints, and the command. May import the other rooms of verification, and theirs."""
