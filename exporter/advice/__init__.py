"""What suits a model on a device: facts about it, measured or computed, and what follows from them."""
