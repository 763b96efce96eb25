"""Drawn street scenes with a label for every pixel: data for training and attacking that anybody can make anew.

A pinhole camera 1.5 m above a straight road: sky and clouds, two rows of houses in perspective, pavements, trees, cars
and people, with texture, haze, light and sensor noise. Deterministic in (seed, index, height, width).
"""

import argparse
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["CLASSES", "export", "scene"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

CLASSES = ("sky", "building", "road", "sidewalk", "tree", "car", "person")
SKY, BUILDING, ROAD, SIDEWALK, TREE, CAR, PERSON = range(7)

_FACADES = np.array(
    [[0.66, 0.30, 0.22], [0.76, 0.56, 0.36], [0.58, 0.36, 0.28], [0.80, 0.66, 0.50], [0.72, 0.42, 0.34],
     [0.56, 0.52, 0.50], [0.84, 0.78, 0.58]], np.float32,
)  # fmt: skip
_LEAVES = np.array([[0.16, 0.40, 0.12], [0.24, 0.48, 0.14], [0.12, 0.34, 0.16], [0.34, 0.46, 0.12]], np.float32)
_CARS = np.array(
    [[0.08, 0.16, 0.66], [0.10, 0.10, 0.42], [0.04, 0.30, 0.74], [0.76, 0.04, 0.06], [0.02, 0.38, 0.60],
     [0.90, 0.91, 0.94], [0.07, 0.07, 0.09]], np.float32,
)  # fmt: skip
_CLOTHES = np.array(
    [[0.95, 0.80, 0.10], [0.98, 0.55, 0.05], [0.90, 0.10, 0.45], [0.95, 0.25, 0.60], [0.15, 0.15, 0.45],
     [0.10, 0.55, 0.60]], np.float32,
)  # fmt: skip


@lru_cache(maxsize=64)
def _stretch(fine: int, coarse: int) -> Floats:
    """The matrix (fine, coarse) that interpolates linearly from a coarse grid of values."""
    where: Floats = np.linspace(0, coarse - 1, fine, dtype=np.float32)
    low = np.minimum(where.astype(int), coarse - 2)
    matrix = np.zeros((fine, coarse), np.float32)
    rows = np.arange(fine)
    matrix[rows, low] = 1 - (where - low)
    matrix[rows, low + 1] = where - low
    return matrix


def _smooth(rng: np.random.Generator, height: int, width: int, cells: int) -> Floats:
    """Smooth noise (height, width), about unit scale, with features of height / cells pixels."""
    tall, wide = cells + 1, max(2, round(cells * width / height)) + 1
    grid = rng.standard_normal((tall, wide), dtype=np.float32)
    result: Floats = (_stretch(height, tall) @ grid @ _stretch(width, wide).T).astype(np.float32)
    return result


class _Canvas:
    """The picture being painted, from far to near: colours, labels and the camera."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.colour = np.empty((height, width, 3), np.float32)
        self.label = np.empty((height, width), np.uint8)
        self.horizon = height * rng.uniform(0.38, 0.50)
        self.vanish = width * rng.uniform(0.36, 0.64)
        self.focal = height * rng.uniform(0.85, 1.05)
        self.eye = rng.uniform(1.4, 1.8)
        self.rows = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
        self.columns = np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5)
        self.haze = rng.uniform(0.002, 0.010)
        self.air = np.array([0.78, 0.86, 0.94], np.float32)

    def place(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Column and row where the point x to the right, y above the ground and z ahead (in metres) is seen."""
        return self.vanish + self.focal * x / z, self.horizon + self.focal * (self.eye - y) / z

    def window(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice] | None:
        """The slices of rows and columns that a rectangle covers, or None if it is out of view."""
        r0, r1 = max(0, math.floor(top)), min(self.height, math.ceil(bottom))
        c0, c1 = max(0, math.floor(left)), min(self.width, math.ceil(right))
        return (slice(r0, r1), slice(c0, c1)) if r0 < r1 and c0 < c1 else None

    def paint(
        self, where: tuple[slice, slice], mask: npt.NDArray[np.bool_], colour: Floats, label: int, z: float
    ) -> None:
        """Colours the masked pixels of a window with `colour` (3,) or (h, w, 3), hazed by the distance z."""
        fade = math.exp(-self.haze * z)
        shade = colour * fade + self.air * (1 - fade)
        np.copyto(self.colour[where], shade, where=mask[..., None])
        self.label[where][mask] = label

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, colour: Floats, label: int, z: float) -> None:
        where = self.window(cx - rx, cy - ry, cx + rx, cy + ry)
        if where is not None and rx > 0.3 and ry > 0.3:
            u = (self.columns[:, where[1]] - cx) / rx
            v = (self.rows[where[0]] - cy) / ry
            self.paint(where, u * u + v * v < 1, colour, label, z)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Floats, label: int, z: float) -> None:
        """A rectangle of every pixel whose centre it covers."""
        where = self.window(left, top, right, bottom)
        if where is not None:
            columns, rows = self.columns[:, where[1]], self.rows[where[0]]
            mask = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
            self.paint(where, mask, colour, label, z)


def _sky(canvas: _Canvas) -> None:
    rng = canvas.rng
    grey = np.float32(rng.random() ** 2)  # from a clear day to an overcast one
    top = (
        np.array([0.36, 0.60, 0.92], np.float32) * (1 - grey)
        + np.float32(0.82) * grey
        + rng.uniform(-0.06, 0.06, 3).astype(np.float32)
    )
    height = np.clip(canvas.rows / canvas.horizon, 0, 1)[..., None]
    clouds = _smooth(rng, canvas.height, canvas.width, 4) + 0.5 * _smooth(rng, canvas.height, canvas.width, 9)
    cover = np.clip(0.35 * clouds + rng.uniform(-0.2, 0.35), 0, 0.9)[..., None]
    canvas.colour[:] = top * (1 - height) + canvas.air * height
    canvas.colour += cover * (np.float32(0.95) - canvas.colour)
    canvas.label[:] = SKY


def _houses(canvas: _Canvas, side: int, offset: float, lit: float) -> None:
    """One row of houses along the street at `offset` metres to one side."""
    rng = canvas.rng
    # Only the columns between the vanishing point and the image's edge see this wall; each sees it at one distance.
    reach = side * (canvas.columns[0] - canvas.vanish)
    depth = canvas.focal * offset / np.maximum(reach, 0.5)  # (W,)
    ends = np.cumsum(rng.uniform(7, 20, 24)) + rng.uniform(0, 4)
    block = np.searchsorted(ends, depth)
    heights = np.append(rng.uniform(5.5, 15, 24), 4).astype(np.float32)
    heights[rng.random(25) < 0.12] = 0  # gaps between houses
    heights[24] = 5
    colours = _FACADES[rng.integers(0, len(_FACADES), 25)] * rng.uniform(0.85, 1.15, (25, 1)).astype(np.float32)
    tall = heights[block]
    above = canvas.eye + (canvas.horizon - canvas.rows) * depth / canvas.focal  # (H, W): metres above the ground
    mask = (reach > 0) & (above < tall) & (above > -0.2) & (tall > 0) & (depth < 260)
    along = depth
    storeys, bays = rng.uniform(2.6, 3.4), rng.uniform(2.2, 3.4)
    panes = (np.mod(above - 0.9, storeys) < 1.5) & (np.mod(along, bays) < 0.45 * bays) & (above > 0.9)
    panes &= (above < tall - 0.8) & (depth < 70)
    wall = colours[block][None] * np.float32(lit)
    glass = np.array([0.22, 0.26, 0.32], np.float32) + np.float32(0.25) * (rng.random() < 0.4)
    soften = np.exp(-depth / 30)[None, :, None]  # far windows blend into the wall
    surface = np.where(panes[..., None], wall + (glass - wall) * soften, wall)
    surface = np.where((above > tall - 0.5)[..., None], wall * np.float32(0.7), surface)
    surface = surface + np.float32(0.03) * _smooth(rng, canvas.height, canvas.width, 24)[..., None]
    fade = np.exp(-canvas.haze * depth)[None, :, None]
    np.copyto(canvas.colour, surface * fade + canvas.air * (1 - fade), where=mask[..., None])
    canvas.label[mask] = BUILDING


def _ground(canvas: _Canvas, kerb_left: float, kerb_right: float) -> None:
    rng = canvas.rng
    below = np.maximum(canvas.rows - canvas.horizon, 0.5)
    depth = canvas.focal * canvas.eye / below  # (H, 1)
    across = (canvas.columns - canvas.vanish) * depth / canvas.focal  # (H, W): metres to the right of the camera
    ground = np.broadcast_to(canvas.rows > canvas.horizon + canvas.height * 0.012, across.shape)
    road = ground & (across > -kerb_left) & (across < kerb_right)
    asphalt = np.float32(rng.uniform(0.20, 0.30))
    tone = np.array([0.98, 1.0, 1.06], np.float32)
    grain = _smooth(rng, canvas.height, canvas.width, 30)
    patches = _smooth(rng, canvas.height, canvas.width, 7)
    surface = (asphalt + 0.018 * grain + 0.02 * patches)[..., None] * tone
    middle = (kerb_right - kerb_left) / 2
    dashes = (np.abs(across - middle) < 0.11) & (np.mod(depth + rng.uniform(0, 6), 6) < 3)
    edges = np.abs(np.abs(across - middle) - (kerb_left + kerb_right) / 2 + 0.35) < 0.07
    surface = np.where(((dashes | edges) & (depth < 35))[..., None], np.float32(0.72), surface)
    paving = np.float32(rng.uniform(0.62, 0.74)) * np.array([1.03, 0.97, 0.88], np.float32)
    tiles = ((np.mod(across, 1.0) < 0.08) | (np.mod(depth, 1.2) < 0.1)) & (depth < 14)
    walk = paving * (1 - 0.10 * tiles[..., None]) + (0.02 * grain)[..., None]
    curb = (across < -kerb_left + 0.0) & (across > -kerb_left - 0.25) | (across > kerb_right) & (
        across < kerb_right + 0.25
    )
    walk = np.where(curb[..., None], np.float32(0.86), walk)
    surface = np.where(road[..., None], surface, walk)
    fade = np.exp(-canvas.haze * depth)[..., None]
    np.copyto(canvas.colour, surface * fade + canvas.air * (1 - fade), where=ground[..., None])
    canvas.label[ground] = SIDEWALK
    canvas.label[road] = ROAD


def _tree(canvas: _Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    tall, radius = rng.uniform(5, 8.5), rng.uniform(1.5, 2.6)
    scale = canvas.focal / z
    cx, foot = canvas.place(x, 0, z)
    cy = canvas.place(x, tall - radius, z)[1]
    trunk = np.array([0.26, 0.20, 0.13], np.float32)
    canvas.box(cx - max(0.16 * scale, 0.6), cy, cx + max(0.16 * scale, 0.6), foot, trunk, TREE, z)
    rx, ry = radius * scale, 1.15 * radius * scale
    where = canvas.window(cx - 1.3 * rx, cy - 1.3 * ry, cx + 1.3 * rx, cy + 1.3 * ry)
    if where is None:
        return
    u = (canvas.columns[:, where[1]] - cx) / rx
    v = (canvas.rows[where[0]] - cy) / ry
    leaves = _smooth(rng, v.shape[0], u.shape[1], 5)
    fine = rng.standard_normal((v.shape[0], u.shape[1]), dtype=np.float32)
    mask = u * u + v * v < 1 + 0.28 * leaves
    green = _LEAVES[rng.integers(0, len(_LEAVES))] * np.float32(rng.uniform(0.85, 1.15))
    shade = 1 - 0.22 * v + 0.16 * leaves + 0.10 * fine
    canvas.paint(where, mask, green * shade[..., None], TREE, z)


def _car(canvas: _Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    wide, tall = rng.uniform(1.7, 1.95), rng.uniform(1.4, 1.75)
    body = _CARS[rng.integers(0, len(_CARS))] * np.float32(rng.uniform(0.85, 1.2))
    dark, glass = np.full(3, 0.05, np.float32), np.array([0.10, 0.14, 0.30], np.float32)
    left, foot = canvas.place(x - wide / 2, 0, z)
    right, roof = canvas.place(x + wide / 2, tall, z)
    w, h = right - left, foot - roof
    # The flank that faces the middle of the picture, seen in perspective: its far end is nearer to the vanishing point.
    length = rng.uniform(3.6, 4.6)
    far_left, _ = canvas.place(x - wide / 2, 0, z + length)
    far_right, _ = canvas.place(x + wide / 2, 0, z + length)
    flank = np.asarray(body * np.float32(0.72))
    far_foot, far_waist = canvas.place(0, 0, z + length)[1], canvas.place(0, 0.6 * tall, z + length)[1]
    for near, far in ((left, far_left), (right, far_right)):
        low, high = min(near, far), max(near, far)
        where = canvas.window(low, roof, high, foot)
        if where is None or (near == left) == (far < near):
            continue
        share = np.clip((canvas.columns[:, where[1]] - near) / (far - near), 0, 1)
        top = (roof + 0.35 * h) * (1 - share) + far_waist * share
        bottom = (foot - 0.08 * h) * (1 - share) + far_foot * share
        rows = canvas.rows[where[0]]
        canvas.paint(where, (rows >= top) & (rows < bottom), flank, CAR, z)
    canvas.box(left + 0.02 * w, foot - 0.2 * h, right - 0.02 * w, foot, dark, CAR, z)
    canvas.box(left, foot - 0.68 * h, right, foot - 0.12 * h, body, CAR, z)
    canvas.box(left + 0.12 * w, roof, right - 0.12 * w, foot - 0.6 * h, body, CAR, z)
    canvas.box(left + 0.18 * w, roof + 0.08 * h, right - 0.18 * w, foot - 0.66 * h, glass, CAR, z)
    lamp = np.array([0.85, 0.12, 0.10] if x > 0 else [0.95, 0.93, 0.75], np.float32)
    canvas.box(left + 0.04 * w, foot - 0.52 * h, left + 0.2 * w, foot - 0.38 * h, lamp, CAR, z)
    canvas.box(right - 0.2 * w, foot - 0.52 * h, right - 0.04 * w, foot - 0.38 * h, lamp, CAR, z)


def _person(canvas: _Canvas, x: float, z: float) -> None:
    rng = canvas.rng
    tall = rng.uniform(1.6, 1.9)
    shirt, legs = _CLOTHES[rng.integers(0, len(_CLOTHES), 2)]
    legs = np.asarray(legs * np.float32(0.8))
    skin = np.array([0.92, 0.62, 0.50], np.float32) * np.float32(rng.uniform(0.8, 1.05))
    cx, foot = canvas.place(x, 0, z)
    head = canvas.place(x, tall, z)[1]
    h = foot - head
    step = rng.uniform(0.0, 0.07) * h
    canvas.box(cx - 0.10 * h - step, foot - 0.48 * h, cx - 0.005 * h, foot, legs, PERSON, z)
    canvas.box(cx + 0.005 * h, foot - 0.48 * h, cx + 0.10 * h + step, foot, legs, PERSON, z)
    canvas.ellipse(cx, head + 0.34 * h, 0.17 * h, 0.22 * h, shirt, PERSON, z)
    canvas.ellipse(cx, head + 0.08 * h, 0.07 * h, 0.09 * h, skin, PERSON, z)


def scene(seed: int, index: int, height: int = 64, width: int = 128) -> tuple[Bytes, Bytes]:
    """Image (height, width, 3) and labels (height, width), both uint8; labels index CLASSES."""
    rng = np.random.default_rng([seed, index])
    canvas = _Canvas(rng, height, width)
    kerb_left, kerb_right = rng.uniform(2.8, 5.5), rng.uniform(2.8, 5.5)
    walk_left, walk_right = rng.uniform(2.2, 4.0, 2)
    sun = rng.uniform(-1, 1)
    _sky(canvas)
    _ground(canvas, kerb_left, kerb_right)
    _houses(canvas, -1, kerb_left + walk_left, 1 - 0.18 * max(0.0, sun))
    _houses(canvas, 1, kerb_right + walk_right, 1 + 0.18 * min(0.0, sun))
    things: list[tuple[float, float, int]] = []
    for kerb, side in ((kerb_left, -1.0), (kerb_right, 1.0)):
        for _ in range(int(rng.integers(0, 4))):
            things.append((side * (kerb + rng.uniform(0.5, 1.0)), 5 + 35 * rng.random() ** 1.3, TREE))
        for _ in range(int(rng.integers(0, 4))):
            things.append((side * (kerb - rng.uniform(1.0, 1.3)), 4.5 + 26 * rng.random() ** 1.3, CAR))
        for _ in range(int(rng.integers(0, 3))):
            things.append((side * (kerb + rng.uniform(0.4, 2.0)), 3.5 + 12 * rng.random() ** 1.3, PERSON))
    if rng.random() < 0.25:
        things.append((rng.uniform(-kerb_left, kerb_right) * 0.7, rng.uniform(4, 12), PERSON))
    draw = {TREE: _tree, CAR: _car, PERSON: _person}
    for x, z, kind in sorted(things, key=lambda thing: -thing[1]):
        draw[kind](canvas, x, z)
    light = rng.uniform(0.88, 1.10) * (1 + rng.uniform(-0.035, 0.035, 3))
    image = canvas.colour * light.astype(np.float32)
    image += np.float32(rng.uniform(0.008, 0.02)) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8), canvas.label


def export(file: Path, *, count: int, seed: int, height: int = 64, width: int = 128) -> None:
    """Writes `count` scenes as a compressed .npz: images (N, 3, H, W) and labels (N, H, W), both uint8."""
    drawn = [scene(seed, index, height, width) for index in range(count)]
    images = np.stack([image.transpose(2, 0, 1) for image, _ in drawn])
    np.savez_compressed(file, images=images, labels=np.stack([labels for _, labels in drawn]))


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m attackcheck.models.scenes", description="Draw scenes to a file.")
    parser.add_argument("--export", type=Path, required=True, metavar="FILE", help=".npz to write")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=2512, help="no shipped network was trained on it (%(default)s)")
    parser.add_argument("--size", default="64x128", metavar="HxW")
    args = parser.parse_args()
    height, _, width = args.size.partition("x")
    export(args.export, count=args.count, seed=args.seed, height=int(height), width=int(width))


if __name__ == "__main__":
    _main()
