"""Draws scenes for training, with PIL's ImageDraw and supersampling."""

import colorsys
import io

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from smart_serve.bundled.scene import Scene, Shape

Colour = tuple[int, int, int]

# Hue (degrees), saturation and value ranges of each colour name; the gaps between the hues keep
# the names apart, and the CSS colours of the same names lie inside.
HSV_RANGES = {
    "red": ((-10, 8), (0.75, 1.0), (0.65, 1.0)),
    "orange": ((22, 40), (0.8, 1.0), (0.85, 1.0)),
    "yellow": ((49, 62), (0.7, 1.0), (0.85, 1.0)),
    "green": ((92, 150), (0.6, 1.0), (0.45, 0.95)),
    "blue": ((206, 243), (0.65, 1.0), (0.6, 1.0)),
    "purple": ((266, 302), (0.55, 1.0), (0.45, 0.95)),
}
# Widest extent of a shape, as a share of the shorter side of a grid cell.
EXTENT_RANGES = {"small": (0.30, 0.46), "large": (0.64, 0.86)}
MIN_SIDE_PX, MAX_SIDE_PX = 96, 512
MAX_ASPECT = 1.3


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """An RGB picture of the scene, 96 to 512 px a side, as a camera or a JPEG would spoil it."""
    width, height = _sides_px(rng)
    scale = 4 if max(width, height) < 200 else 2
    canvas = Image.new("RGB", (width * scale, height * scale), _background(rng))
    draw = ImageDraw.Draw(canvas)
    outlined = rng.random() < 0.5
    for shape in scene.shapes:
        _draw_shape(draw, shape, canvas.size, outlined, rng)
    return _spoil(canvas.reduce(scale), rng)


def _sides_px(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height; half of the pictures are square, and small ones are more common."""
    side = int(MIN_SIDE_PX * (MAX_SIDE_PX / MIN_SIDE_PX) ** rng.random())
    if rng.random() < 0.5:
        return side, side
    other = int(np.clip(side * rng.uniform(1 / MAX_ASPECT, MAX_ASPECT), MIN_SIDE_PX, MAX_SIDE_PX))
    return side, other


def _background(rng: np.random.Generator) -> Colour:
    """A light tint; a quarter of the pictures are on white."""
    if rng.random() < 0.25:
        return (255, 255, 255)
    red, green, blue = rng.integers(195, 256, size=3).tolist()
    return (red, green, blue)


def _fill(colour: str, rng: np.random.Generator) -> Colour:
    hue, saturation, value = (rng.uniform(*bounds) for bounds in HSV_RANGES[colour])
    red, green, blue = colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value)
    return (round(red * 255), round(green * 255), round(blue * 255))


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: Shape,
    canvas_px: tuple[int, int],
    outlined: bool,
    rng: np.random.Generator,
) -> None:
    cell_w, cell_h = canvas_px[0] / 3, canvas_px[1] / 3
    radius = rng.uniform(*EXTENT_RANGES[shape.size]) * min(cell_w, cell_h) / 2
    # The shape may lean over its cell's edge a little, its centre stays well inside.
    shift = 0.30 if shape.size == "small" else 0.12
    x = (shape.place % 3 + 0.5 + rng.uniform(-shift, shift)) * cell_w
    y = (shape.place // 3 + 0.5 + rng.uniform(-shift, shift)) * cell_h
    fill = _fill(shape.colour, rng)
    outline = _outline(fill, rng) if outlined else None
    width = max(1, round(radius * rng.uniform(0.05, 0.14))) if outlined else 0
    if shape.kind == "circle":
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=fill, outline=outline, width=width)
        return
    corners = _corners(shape.kind, x, y, radius, rng)
    draw.polygon(corners, fill=fill, outline=outline, width=width)


def _outline(fill: Colour, rng: np.random.Generator) -> Colour:
    """Near black, or a darker shade of the fill."""
    if rng.random() < 0.5:
        grey = int(rng.integers(0, 70))
        return (grey, grey, grey)
    shade = rng.uniform(0.4, 0.7)
    red, green, blue = (int(channel * shade) for channel in fill)
    return (red, green, blue)


def _corners(
    kind: str, x: float, y: float, radius: float, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Corner points, slightly turned; a square's side equals the extent 2 * radius."""
    turn = rng.uniform(-0.15, 0.15)
    if kind == "square":
        angles, reach = np.pi / 4 + np.arange(4) * np.pi / 2, radius * 0.9 * 2**0.5
    else:
        angles, reach = -np.pi / 2 + np.arange(3) * 2 * np.pi / 3, radius * 1.12
        y += radius * 0.2
    return [(x + reach * np.cos(a + turn), y + reach * np.sin(a + turn)) for a in angles]


def _spoil(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, blur, noise and JPEG artefacts, each now and then and slight."""
    if rng.random() < 0.4:
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.85, 1.12))
    if rng.random() < 0.3:
        blur_px = rng.uniform(0.2, 0.006 * min(picture.size) + 0.4)
        picture = picture.filter(ImageFilter.GaussianBlur(blur_px))
    if rng.random() < 0.3:
        clean = np.asarray(picture)
        pixels = clean + rng.normal(0, rng.uniform(1, 8), size=clean.shape)
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(40, 96)))
        picture = Image.open(buffer).convert("RGB")
    return picture
