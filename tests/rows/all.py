"""All rows."""

from tests.rows import (
    attention,
    contraction,
    contrib,
    contrib_attention,
    contrib_quantised,
    control,
    elementwise,
    interface,
    movement,
    networks,
    normalisation,
    quantisation,
    recurrent,
    spatial,
)

ROWS = [
    *elementwise.ROWS,
    *contraction.ROWS,
    *attention.ROWS,
    *control.ROWS,
    *movement.ROWS,
    *normalisation.ROWS,
    *quantisation.ROWS,
    *recurrent.ROWS,
    *spatial.ROWS,
    *contrib.ROWS,
    *contrib_attention.ROWS,
    *contrib_quantised.ROWS,
    *networks.ROWS,
    *interface.ROWS,
]
