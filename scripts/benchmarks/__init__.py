"""Speed, memory and learning beside peers."""
