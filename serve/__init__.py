"""Batch evaluation and the chat."""
