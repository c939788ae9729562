"""Metrics, retrieval, generation and reports."""
