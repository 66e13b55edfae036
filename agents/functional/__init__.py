"""Pure mathematics over [B, T] with a mask: tensors in, tensors out. Imports nothing of ours."""
