"""Gradients at work on a graph: gates on units, scores and masks learned with them, fine-tuning and distillation.

This package needs torch, and so imports it at the top; whoever uses it imports it inside a function.
"""
