"""Pictures that compare an image with its reconstruction, and picture files with provenance."""

import io
import itertools
from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

_PANEL = 640  # Longest side of a panel, pixels; smaller images are enlarged by a whole number.
_DETAIL = 2  # Magnification of the detail of a photograph.
_EDGE = 16  # Pixels inside the edge of the field of view that the detail avoids.
_MARGIN = 12
_TEXT = 16
_BAR = 14  # Height of the colour scale.
_MARK = (80, 255, 120)  # Colour of the frame around the region of the detail.


def reduced(image: np.ndarray, side: int) -> np.ndarray:
    """Reduces a picture [H, W, ...] by area means so that its longer side has at most `side`."""
    factor = min(side / max(image.shape[:2]), 1)
    size = tuple(max(round(factor * length), 1) for length in image.shape[1::-1])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def difference(image: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Returns the absolute difference in grey levels, averaged over R, G, B.

    Args:
      image: uint8 [H, W, 3].
      output: uint8 [H, W, 3].

    Returns:
      float32 [H, W].
    """
    return cv2.transform(cv2.absdiff(image, output).astype(np.float32), np.full((1, 3), 1 / 3))


def difference_map(of: np.ndarray, levels: float) -> np.ndarray:
    """Colours grey levels float32 [H, W] from black (0) to pale yellow (`levels`): uint8 RGB."""
    scaled = np.rint(np.minimum(of * (255.0 / levels), 255.0)).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def comparison(
    image: np.ndarray,
    output: np.ndarray,
    mask: np.ndarray,
    *,
    caption: str,
    levels: float,
    titles: tuple[str, str] = ("original", "reconstruction"),
) -> np.ndarray:
    """Draws two images and their difference side by side, with the difference's colour scale.

    For a photograph, the square with the largest difference follows below, enlarged. It avoids the
    edge of the field of view, where the step to black is hard for any model and of no interest.

    Args:
      image: uint8 [H, W, 3].
      output: uint8 [H, W, 3].
      mask: bool [H, W], the field of view.
      caption: Text above the panels.
      levels: Grey levels at the top of the colour scale.
      titles: Titles of the two images.

    Returns:
      uint8 [height, width, 3].
    """
    of = difference(image, output)
    panels = [image, output, difference_map(of, levels)]
    rows = [[_fitted(panel) for panel in panels]]
    titles = [*titles, f"difference x {255 / levels:g}"]
    notes = []
    if max(image.shape[:2]) > _PANEL:
        side = min(_PANEL // _DETAIL, *image.shape[:2])
        y, x = _largest(of * _eroded(mask), side)
        rows.append([_enlarged(p[y : y + side, x : x + side], _DETAIL) for p in panels])
        factor = rows[0][0].shape[1] / image.shape[1]
        for panel in rows[0]:
            first, last = (
                (round(c * factor), round(r * factor)) for r, c in ((y, x), (y + side, x + side))
            )
            cv2.rectangle(panel, first, last, _MARK, 2)
        notes.append(
            f"where the inside differs most, {_DETAIL} x enlarged (from row {y}, column {x})"
        )
    return _page(caption, titles, rows, notes, levels)


def encode_with_text(image: np.ndarray, suffix: str, fields: Mapping[str, str]) -> bytes:
    """Encodes a picture as PNG or as 4:4:4 JPEG, with text fields that record its provenance.

    Args:
      image: uint8 [H, W, 3].
      suffix: ".png" (one text chunk per field) or ".jpg" (one comment).
      fields: Names in Latin letters, and their texts. Of a `command` only the name is written: it
        may name other photographs.
    """
    if "command" in fields:
        words = itertools.takewhile(
            lambda word: not word.startswith("-"), fields["command"].split()
        )
        fields = {**fields, "command": " ".join(itertools.islice(words, 2))}
    encoded = io.BytesIO()
    if suffix == ".png":
        texts = PngImagePlugin.PngInfo()
        for name, text in fields.items():
            texts.add_itxt(name, text)
        options = {"pnginfo": texts, "compress_level": 3}
    else:
        comment = "\n".join(f"{name}: {text}" for name, text in fields.items())
        options = {"comment": comment.encode()[:65000], "quality": 95, "subsampling": 0}
    Image.fromarray(image).save(encoded, "PNG" if suffix == ".png" else "JPEG", **options)
    return encoded.getvalue()


def _fitted(panel: np.ndarray) -> np.ndarray:
    """Reduces a panel to the panel size, or enlarges it by a whole number that fits."""
    longest = max(panel.shape[:2])
    if longest <= _PANEL:
        return _enlarged(panel, max(1, _PANEL // longest))
    factor = _PANEL / longest
    size = tuple(max(1, round(side * factor)) for side in (panel.shape[1], panel.shape[0]))
    return cv2.resize(panel, size, interpolation=cv2.INTER_AREA)


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Returns the part of a mask that is more than `_EDGE` pixels from its edge, uint8 [H, W]."""
    box = np.ones((2 * _EDGE + 1, 2 * _EDGE + 1), np.uint8)
    return cv2.erode(mask.astype(np.uint8), box, borderType=cv2.BORDER_CONSTANT, borderValue=1)


def _enlarged(panel: np.ndarray, times: int) -> np.ndarray:
    return panel.repeat(times, axis=0).repeat(times, axis=1)


def _largest(of: np.ndarray, side: int) -> tuple[int, int]:
    """Finds the square with the largest sum, in steps of an eighth of its side: corner (y, x)."""
    sums = cv2.integral(of)
    step = max(1, side // 8)
    ys, xs = (np.arange(0, length - side + 1, step) for length in of.shape)
    far_y, far_x = ys[:, None] + side, xs[None, :] + side
    near_y, near_x = ys[:, None], xs[None, :]
    totals = sums[far_y, far_x] - sums[near_y, far_x] - sums[far_y, near_x] + sums[near_y, near_x]
    place = np.unravel_index(np.argmax(totals), totals.shape)
    return int(ys[place[0]]), int(xs[place[1]])


def _page(
    caption: str, titles: list[str], rows: list[list[np.ndarray]], notes: list[str], levels: float
) -> np.ndarray:
    """Arranges panels in columns under a caption and titles; the colour scale is below the last."""
    column = max(panel.shape[1] for row in rows for panel in row)
    line = _TEXT + _MARGIN
    width = len(titles) * (column + _MARGIN) + _MARGIN
    heights = [row[0].shape[0] for row in rows]
    height = _MARGIN + 2 * line + sum(heights) + (line + _MARGIN) * len(notes) + _MARGIN
    font = ImageFont.load_default(_TEXT)
    lines = _wrapped(caption, width - 2 * _MARGIN, font)
    height += line * (len(lines) - 1) + _BAR + line + _MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    y = _MARGIN
    for text in lines:
        draw.text((_MARGIN, y), text, "black", font)
        y += line
    lefts = [_MARGIN + i * (column + _MARGIN) for i in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left, y), title, "black", font)
    y += line
    for number, row in enumerate(rows):
        if number:
            y += _MARGIN
            draw.text((_MARGIN, y), notes[number - 1], "black", font)
            y += line
        for left, panel in zip(lefts, row, strict=True):
            canvas.paste(Image.fromarray(panel), (left, y))
        y += heights[number]
    _draw_scale(canvas, draw, font, lefts[-1], y + _MARGIN, rows[-1][-1].shape[1], levels)
    return np.asarray(canvas)


def _draw_scale(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    left: int,
    top: int,
    width: int,
    levels: float,
) -> None:
    """Draws the colours of the difference from 0 to `levels`, with their values below."""
    ramp = np.linspace(0, levels, width, dtype=np.float32)
    bar = difference_map(np.tile(ramp, (_BAR, 1)), levels)
    canvas.paste(Image.fromarray(bar), (left, top))
    texts = ["0", f"{levels / 2:g}", f"{levels:g} grey levels or more"]
    for share, text in zip((0.0, 0.5, 1.0), texts, strict=True):
        x = left + share * width - share * font.getlength(text)
        draw.text((x, top + _BAR + 4), text, "black", font)


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Breaks a line that is too long at its double spaces."""
    lines = [""]
    for part in text.split("  "):
        joined = f"{lines[-1]}  {part}" if lines[-1] else part
        if lines[-1] and font.getlength(joined) > width:
            lines.append(part)
        else:
            lines[-1] = joined
    return lines
