"""GRACE that stops on request: a plug-in by which tests have accidents at a known moment.

In the second edit of each process, as long as the folder of accidents has `hold-<seed>`, it waits;
SIGTERM ends the wait, as a step that was just done, unless there is `deaf-<seed>`. With
`eat-<seed>` it takes more memory than its job may have, once. Without that folder it is GRACE.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import ClassVar

from grace_bench.editors import EditorSpec
from grace_bench.editors.methods.grace.editor import GraceEditor

ACCIDENTS = "GRACE_BENCH_TEST_ACCIDENTS"
EATEN_MIB = 1800


class HeldEditor(GraceEditor):
    name: ClassVar[str] = "held"
    edits = 0

    def edit(self, batch):
        self.edits += 1
        if self.edits == 2 and ACCIDENTS in os.environ:
            meet(Path(os.environ[ACCIDENTS]), self.generator.initial_seed())
        return super().edit(batch)


def meet(folder: Path, seed: int) -> None:
    eat, hold, deaf = (folder / f"{what}-{seed}" for what in ("eat", "hold", "deaf"))
    if eat.exists():
        eat.unlink()
        eaten = bytearray(EATEN_MIB * 2**20)
        eaten[::4096] = b"x" * len(eaten[::4096])
        time.sleep(30)
    if not hold.exists():
        return
    job = os.environ["SLURM_JOB_ID"]
    terms = []

    def on_term(number, frame):
        terms.append(time.time())
        (folder / f"term-{seed}-{job}").write_text(str(terms[0]))
        if callable(before):
            before(number, frame)

    before = signal.signal(signal.SIGTERM, on_term)
    arrived = folder / f".at-{seed}-{job}"
    arrived.write_text(
        json.dumps(
            {
                "pid": os.getpid(),
                "node": os.environ.get("SLURMD_NODENAME"),
                "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
            }
        )
    )
    arrived.rename(folder / f"at-{seed}-{job}")
    while hold.exists() and not (terms and not deaf.exists()):
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, before)


SPEC = EditorSpec(
    "grace_bench.editors.methods.grace.hyperparameters:GraceHyperparameters",
    "held_editor:HeldEditor",
)
