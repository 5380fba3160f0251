"""Sweeps: models by budgets by methods by devices, each job done once, in local processes or on a Ray cluster."""
