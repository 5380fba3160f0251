"""Sizes and values of inputs that will not change become part of the file."""

from exporter.fixing.fixer import Fixed, fix_inputs
from exporter.fixing.request import Fixes, parse_fixes

__all__ = ["Fixed", "Fixes", "fix_inputs", "parse_fixes"]
