"""The HTML report: one self-contained file, made of the documents that ``--json`` writes. It runs no model."""
