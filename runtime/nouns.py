"""Counted nouns: ``1 layer``, ``3 layers``, ``12,000 samples``."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """A number and its noun, which agree.

    Args:
        number: how many there are.
        one: what stands behind 1: ``layer``, or more words of which the last is a noun (``held-out sample``).
        many: what stands behind any other number; by default ``one`` in the plural. A verb can be part of both:
            ``counted(n, "group is", "groups are")``.
    """
    return f"{number:,} {one if number == 1 else many or plural(one)}"


def all_of(number: int, one: str) -> str:
    """The title of a complete list: ``All 12 layers``, or ``The only layer``."""
    return f"The only {one}" if number == 1 else f"All {counted(number, one)}"


def plural(noun: str) -> str:
    """The plural of a regular English noun, and of those in -is: layers, batches, tries, axes."""
    if noun.endswith("is"):
        return f"{noun[:-2]}es"
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in set("aeiou"):
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def out_of(part: int, whole: int, one: str, verb: str = "", verbs: str = "") -> str:
    """A part of a number of things, and a verb that agrees with the part: ``1 of 4 groups is``, ``3 of 4 groups are``.

    Args:
        part: how many the sentence is about.
        whole: how many there are.
        one: the noun, in the singular.
        verb, verbs: what follows where ``part`` is 1, and where it is any other number.
    """
    return f"{part:,} of {counted(whole, one)} {verb if part == 1 else verbs}".rstrip()
