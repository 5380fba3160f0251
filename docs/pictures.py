"""Draw the pictures of docs/slots.md as SVG. Run as ``python docs/pictures.py``."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("pictures")

INK, GREY, PALE, CUT, PAPER = "#24292f", "#8a929c", "#dce6f5", "#e4572e", "#ffffff"
CELL = 16


class Picture:
    """An SVG under construction; positions in pixels from the top left."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="system-ui, sans-serif" font-size="13">',
            f"<title>{title}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
        ]

    def text(self, x: float, y: float, words: str, colour: str = INK, anchor: str = "middle", size: int = 13) -> None:
        """One line of text, its baseline at y."""
        self._lines.append(
            f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">{words}</text>'
        )

    def grid(self, x: float, y: float, columns: int, rows: int, cut: set[tuple[int, int]]) -> None:
        """Cells of a weight or a vector; those in ``cut`` (column, row) are the unit that goes."""
        for row in range(rows):
            for column in range(columns):
                fill = CUT if (column, row) in cut else PALE
                self._lines.append(
                    f'<rect x="{x + column * CELL:g}" y="{y + row * CELL:g}" width="{CELL}" height="{CELL}" '
                    f'fill="{fill}" stroke="{PAPER}"/>'
                )

    def box(self, x: float, y: float, width: float, height: float, words: str, colour: str = GREY) -> None:
        """A node, with its name."""
        self._lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="none" stroke="{colour}" '
            f'stroke-width="1.5"/>'
        )
        self.text(x + width / 2, y + height / 2 + 4.5, words, INK)

    def arrow(self, *points: tuple[float, float], colour: str = GREY, dashed: bool = False) -> None:
        """A line through the points with a head at the last."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self._lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
        (x0, y0), (x, y) = points[-2:]
        if x != x0:
            side = 6 if x > x0 else -6
            head = f"{x:g},{y:g} {x - side:g},{y - 4:g} {x - side:g},{y + 4:g}"
        else:
            side = 6 if y > y0 else -6
            head = f"{x:g},{y:g} {x - 4:g},{y - side:g} {x + 4:g},{y - side:g}"
        self._lines.append(f'<polygon points="{head}" fill="{colour}"/>')

    def svg(self) -> str:
        """The file's text."""
        return "\n".join([*self._lines, "</svg>"]) + "\n"


def column(at: int, rows: int) -> set[tuple[int, int]]:
    """The cells of one column."""
    return {(at, row) for row in range(rows)}


def chain() -> str:
    """Convolution, batch normalization, convolution: one channel, and everything that is tied to it."""
    p = Picture(640, 224, "Channel 3 of a convolution, its batch normalization and the next convolution are one unit")
    p.text(20, 26, "Channel 3 is one row of w1, one entry of the normalization, one column of w2.", anchor="start")
    p.grid(60, 70, 3, 8, {(c, 3) for c in range(3)})
    p.text(84, 62, "w1 [8, 3]")
    p.grid(270, 70, 1, 8, {(0, 3)})
    p.text(278, 62, "scale, bias, mean, variance [8]")
    p.grid(460, 86, 8, 4, column(3, 4))
    p.text(524, 78, "w2 [4, 8]")
    p.arrow((118, 126), (262, 126), colour=CUT)
    p.arrow((294, 126), (456, 126), colour=CUT)
    p.text(190, 118, "tied", CUT)
    p.text(375, 118, "tied", CUT)
    p.text(20, 216, "columns: the image, frozen", GREY, anchor="start")
    p.text(524, 172, "rows: the output, frozen", GREY)
    return p.svg()


def heads() -> str:
    """A fused query-key-value projection: one head is four columns of each third, and four rows behind."""
    p = Picture(640, 306, "Head 1 of a fused projection: its columns of queries, keys and values, and its rows behind")
    p.text(20, 26, "Twelve columns of each third are 3 heads x 4 dimensions. Head 1 is a unit:", anchor="start")
    head = {(third * 12 + 4 + d, row) for third in range(3) for d in range(4) for row in range(4)}
    p.grid(32, 62, 36, 4, head)
    for third, name in enumerate(("queries", "keys", "values")):
        p.text(32 + CELL * (12 * third + 6), 54, f"{name}: 3 x 4", GREY)
        middle = 32 + CELL * (12 * third + 6)
        p.arrow((middle, 128), (middle, 152), colour=CUT)
        p.grid(middle - 2 * CELL, 156, 4, 3, {(d, 1) for d in range(4)})
    p.text(32, 172, "head 0", GREY, anchor="start", size=12)
    p.text(32, 188, "head 1", CUT, anchor="start", size=12)
    p.text(32, 204, "head 2", GREY, anchor="start", size=12)
    p.text(224, 172, "Split, Reshape:", GREY, size=12)
    p.text(224, 188, "a product", GREY, size=12)
    p.text(416, 172, "tied where Q Kt", GREY, size=12)
    p.text(416, 188, "and A V meet", GREY, size=12)
    p.arrow((512, 206), (512, 258), (356, 258), colour=CUT)
    p.grid(160, 234, 12, 3, {(4 + d, row) for d in range(4) for row in range(3)})
    p.text(20, 250, "the projection behind,", GREY, anchor="start", size=12)
    p.text(20, 266, "rows shown lying", GREY, anchor="start", size=12)
    p.text(264, 299, "its four rows of head 1 go too", CUT, size=12)
    return p.svg()


def residual() -> str:
    """A residual stream ties the widths of all layers that add to it."""
    p = Picture(640, 190, "A residual stream: each Add ties its two operands, so all layers share one width")
    p.text(20, 26, "Each Add ties what it adds: position 5 of the stream is position 5 everywhere.", anchor="start")
    p.arrow((20, 150), (620, 150), colour=CUT)
    p.text(60, 172, "the stream", CUT)
    for at, name in ((110, "attention"), (280, "neurons"), (450, "attention")):
        p.box(at, 62, 100, 40, name)
        p.arrow((at - 14, 150), (at - 14, 82), (at, 82), colour=CUT)
        p.arrow((at + 100, 82), (at + 122, 82), (at + 122, 140), colour=CUT)
        p.box(at + 112, 140, 20, 20, "+")
        p.text(at + 50, 54, "inside: units of its own", GREY, size=12)
    return p.svg()


def proof() -> str:
    """How a result is proved: two ways from one plan, compared."""
    p = Picture(640, 230, "The pruned model and the masked original are made by different code, and must agree")
    p.box(20, 92, 110, 44, "original")
    p.box(20, 164, 110, 44, "plan", CUT)
    p.box(232, 36, 150, 44, "pruned model")
    p.box(232, 128, 150, 44, "masked original")
    p.arrow((130, 106), (180, 106), (180, 58), (228, 58))
    p.arrow((130, 122), (200, 122), (200, 142), (228, 142))
    p.arrow((130, 178), (164, 178), (164, 66), (228, 66), colour=CUT)
    p.arrow((130, 192), (212, 192), (212, 160), (228, 160), colour=CUT)
    p.text(204, 28, "rules and rewrite", GREY, size=12)
    p.text(306, 192, "a table of what sums and", GREY, size=12)
    p.text(306, 207, "normalises, 0/1 gates", GREY, size=12)
    p.box(470, 82, 150, 44, "ONNX Runtime")
    p.arrow((382, 58), (440, 58), (440, 96), (466, 96))
    p.arrow((382, 150), (440, 150), (440, 112), (466, 112))
    p.arrow((545, 126), (545, 164))
    p.text(545, 182, "equal: written")
    p.text(545, 200, "else: where it differs", CUT)
    return p.svg()


PICTURES = {"chain": chain, "heads": heads, "residual": residual, "proof": proof}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
