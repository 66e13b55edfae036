"""What a GPU is to be checked for, on the day that one is at hand. May import all of `scripts.benchmarks`."""
