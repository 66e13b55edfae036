"""Each command's settings and help, read before torch is imported; what runs is named by module and function."""
