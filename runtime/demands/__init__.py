"""What a graph asks of the sizes of its inputs: followed from operator to operator, and solved."""
