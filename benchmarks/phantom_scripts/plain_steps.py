"""Steps of yolov9-s at batch 16; prints, or writes to a file, the median CPU seconds of one."""

import statistics
import sys
import time
from pathlib import Path

import torch
from memplan_models import yolov9

BATCH = 16


def main() -> None:
    """Train; the first steps, which make the optimizer's state, are not counted.

    The second argument, where there is one, is how many steps to train.
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
    for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 24):
        # Of all threads: a shared machine's wall time says more of the others than of the step.
        begun = time.process_time()
        batch = images.cuda(non_blocking=True).float() / 255
        with torch.autocast("cuda", torch.float16):
            loss, _parts = loss_of(net(batch), targets.cuda())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - begun)
    median = statistics.median(seconds[4:])
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(str(median))
    print(median)


if __name__ == "__main__":
    main()
