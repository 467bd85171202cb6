"""Seeds that depend on positions in a run, so that a resumed run goes on as if it had not stopped."""

from __future__ import annotations

import numpy as np


def derived_seed(*parts: int) -> int:
    """A seed that is unrelated for unrelated parts; below 2**63, what torch.manual_seed takes."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
