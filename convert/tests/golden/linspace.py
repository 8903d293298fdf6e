"""Writes linspace.txt: `N K: kept layers` as numpy rounds them, for every stack of up to 36 layers.

numpy 2; run in this folder: python linspace.py
"""

import numpy as np

with open("linspace.txt", "w") as out:
    for n in range(1, 37):
        for k in range(1, n + 1):
            layers = np.round(np.linspace(0, n - 1, k)).astype(int)
            print(f"{n} {k}: {' '.join(map(str, layers))}", file=out)
