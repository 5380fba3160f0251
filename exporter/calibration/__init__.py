"""What a few hundred unlabelled inputs tell: which units matter, where to cut, and what the layers left should hold."""
