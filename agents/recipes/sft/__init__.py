"""Stage 1: a language model trained from scratch or fine-tuned on rows of prompts and completions."""
