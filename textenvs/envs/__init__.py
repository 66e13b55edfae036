"""The token vector environment, its scalar view and the base of its wrappers. May import tokens."""
