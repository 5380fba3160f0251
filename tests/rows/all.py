"""All rows."""

from tests.rows import contraction, elementwise, movement, networks, normalisation, spatial

ROWS = [
    *elementwise.ROWS,
    *contraction.ROWS,
    *movement.ROWS,
    *normalisation.ROWS,
    *spatial.ROWS,
    *networks.ROWS,
]
