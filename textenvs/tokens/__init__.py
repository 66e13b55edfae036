"""Rows of token ids, prompts, tokenizers, chats, and checks of what is handed in. Imports nothing of ours."""
