"""Rows of token ids, prompts, tokenizers, chats, and checks of outside input. Imports nothing of ours."""
