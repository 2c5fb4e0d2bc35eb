"""Train the prior that `intarsia codec encode` has: python scripts/codec_prior.py FOLDER.

22 photographs at an eighth of their size, 64 parts of 2 x 2 patches; every fifth photograph is left
out. FOLDER.training keeps the state, so that a killed training goes on.
"""

from __future__ import annotations

import sys

from intarsia.areas.codec.codec import Recombiner
from intarsia.areas.codec.recombiner import RecombinerSettings
from intarsia_lab.experiments.recombiner import pictures

# maps at the released rate are level (32.00 dB on twelve fresh crops) and would be 1.2 MB more
SETTINGS = RecombinerSettings(reparametrise=False, kl_bits=10)

if __name__ == "__main__":
    train = [one for one in pictures(1)[0] if min(one.shape[:2]) >= 64]
    Recombiner.train(
        train, 1.0, SETTINGS, crops=64, tiles=2, steps=600, batch=64, out=sys.argv[1] + ".training"
    ).save(sys.argv[1])
