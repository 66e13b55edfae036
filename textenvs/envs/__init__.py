"""The vector environment over tokens, its scalar view, the base of its wrappers. May import tokens."""
