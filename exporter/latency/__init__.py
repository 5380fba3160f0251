"""Latency: what a cut saves in seconds, plans for a share of them, and what measurements look like as text and JSON."""
