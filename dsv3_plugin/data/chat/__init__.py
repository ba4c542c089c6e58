"""Conversations: rows of chat and of prompt and response, and the text that a template makes."""
