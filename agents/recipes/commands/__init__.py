"""Each command's settings and help, read before torch is imported; what runs is imported once the flags are known."""
