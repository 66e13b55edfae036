"""Text training beside TRL."""
