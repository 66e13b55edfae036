"""transformers' layers over rows without padding, and faster kernels. The one room that reaches into its internals."""
