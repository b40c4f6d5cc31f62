# SPDX-License-Identifier: Apache-2.0
"""Draw every icon from its SVG: a PNG of 128 x 128 beside it. Needs PySide6.

python Resources/Icons/draw_icons.py
"""

from pathlib import Path

SIDE = 128


def draw(svg: Path) -> None:
    """Write the PNG of an SVG beside it."""
    from PySide6.QtGui import QImage, QPainter
    from PySide6.QtSvg import QSvgRenderer

    image = QImage(SIDE, SIDE, QImage.Format_ARGB32)
    image.fill(0)
    painter = QPainter(image)
    painter.setRenderHint(QPainter.Antialiasing)
    QSvgRenderer(str(svg)).render(painter)
    painter.end()
    image.save(str(svg.with_suffix(".png")))


if __name__ == "__main__":
    for svg in Path(__file__).resolve().parents[2].glob("**/Resources/Icons/*.svg"):
        draw(svg)
