"""Sizes and values of inputs that will not change become part of the file."""

from exporter.fixing.fixer import Fixed, fix_inputs
from exporter.fixing.request import Fixes, parse_fixes
from exporter.fixing.undecided import Undecided, undecided

__all__ = ["Fixed", "Fixes", "Undecided", "fix_inputs", "parse_fixes", "undecided"]
