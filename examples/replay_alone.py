"""Judge a counterexample without attackcheck: numpy, fractions and the model are all it takes.

    python examples/replay_alone.py COUNTEREXAMPLE.npz FILE.py:FACTORY [--threads N] [--batch N]

FACTORY returns the model, or a tuple that starts with it. Exit code 1: the claim is broken here; 0: it is not.
"""

import argparse
import importlib.util
import json
from fractions import Fraction
from math import sqrt

import numpy as np
import torch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("counterexample")
parser.add_argument("factory", metavar="FILE.py:FACTORY")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--batch", type=int, default=1)
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)
path, _, name = arguments.factory.rpartition(":")
module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("factory", path))
spec.loader.exec_module(module)
made = getattr(module, name)()
model = (made[0] if isinstance(made, tuple) else made).eval().double()

with np.load(arguments.counterexample, allow_pickle=False) as file:
    clean, perturbed, meta = file["clean"], file["perturbed"], json.loads(str(file["meta"]))


def logits(image: np.ndarray) -> np.ndarray:  # (K, H, W) in float64
    with torch.no_grad():
        return model(torch.from_numpy(image).double().expand(arguments.batch, *image.shape))[-1].numpy()


# Float32 numbers are fractions: the squared distance is exact, its square root rounded up.
moved = np.flatnonzero(clean != perturbed)
squares = sum((Fraction(float(perturbed.flat[i])) - Fraction(float(clean.flat[i]))) ** 2 for i in moved)
distance = np.nextafter(sqrt(squares), np.inf)
before, after, claim, kind = logits(clean), logits(perturbed), meta["claim"], meta["kind"]
own, new = before.argmax(0), after.argmax(0)
here = before.max(0) - np.where(np.arange(len(before))[:, None, None] == own, -np.inf, before).max(0)  # margins,
back = after.max(0) - np.take_along_axis(after, own[None], 0)[0]  # and those of the new class over the clean one there
if claim["kind"] != "lipschitz":  # radii of somebody's certifier, as recorded; the flip is seen here
    bound = meta["radius"] * bool(new[tuple(meta["pixel"])] != own[tuple(meta["pixel"])])
elif kind == "LIPSCHITZ":
    per_pixel = np.linalg.norm(after - before, axis=0).max() / (claim["pixel"] or claim["L"])
    bound = max(per_pixel, np.linalg.norm(after - before) / claim["L"] if claim["scope"] == "joint" else 0.0)
else:
    slope = 1.0 / (sqrt(2.0) * (claim["pixel"] or claim["L"]))
    balls = np.where(new != own, here + (back if kind != "PIXEL" else 0.0), 0.0) * slope
    joint = np.linalg.norm(balls) * (claim["pixel"] or claim["L"]) / claim["L"]
    bound = joint if kind == "SET" else balls[tuple(meta["pixel"])]
print(f"{kind}: claimed to take at least {bound:.9g}, took {distance:.9g} (x {bound / distance:.6f})")
broken, counted = bound > distance * (1 + meta["tolerance"]), "confidence" in claim  # which only a rate breaks
print("the claim is not broken here" if not broken else "counted" if counted else "the claim is broken")
raise SystemExit(int(broken and not counted))
