"""Classic control as arrays, equal to the scalar originals bit for bit. Imports nothing of ours."""
