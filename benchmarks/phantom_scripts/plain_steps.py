"""Steps of yolov9-s at batch 16; prints the median CPU milliseconds of one, of all threads."""

import argparse
import os
import statistics
import tempfile
import time

import torch
from memplan_models import yolov9

from memplan.recording.watch import Watch
from memplan.recording.watch_settings import WatchSettings

BATCH = 16
# The first make the optimizer's state, and fill the allocator's cache.
_NOT_COUNTED = 4


def main() -> None:
    """Train, watched as far as is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--watch", choices=("nothing", "attribution", "all"), default="nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.watch != "nothing":
            # More steps than are trained, so that the watch does not end the process.
            Watch(
                WatchSettings(
                    folder=folder,
                    steps=options.steps + 1,
                    follows_values=options.watch == "all",
                )
            ).install()
        print(1e3 * statistics.median(train(options.steps)[_NOT_COUNTED:] or [0.0]), flush=True)
        if options.watch != "nothing":
            os._exit(0)  # what was seen is not asked for


def train(num_steps: int) -> list[float]:
    """Return the CPU seconds of each step.

    Of all threads, not of the wall clock: on a shared machine that says more of the others.
    """
    net = yolov9.build("yolov9-s", nc=80).cuda().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.937)
    scaler = torch.amp.GradScaler("cuda")
    loss_of = yolov9.loss(net)
    images = torch.zeros(BATCH, 3, 640, 640, dtype=torch.uint8)
    targets = torch.rand(BATCH * 7, 6)
    targets[:, 0] = torch.arange(BATCH).repeat_interleave(7)
    targets[:, 1] = 3
    seconds = []
    for _ in range(num_steps):
        begun = time.process_time()
        batch = images.cuda(non_blocking=True).float() / 255
        with torch.autocast("cuda", torch.float16):
            loss, _parts = loss_of(net(batch), targets.cuda())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - begun)
    return seconds


if __name__ == "__main__":
    main()
