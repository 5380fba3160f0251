"""Engines for the command line: precision realised in the file, built, described, reported."""
