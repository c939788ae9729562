"""The two training stages and the toy base models."""
