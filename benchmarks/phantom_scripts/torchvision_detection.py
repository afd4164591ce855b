"""Faster R-CNN trained as torchvision's reference scripts do: lists of images, warm-up, losses."""

import math
import sys

import torch
import torchvision


def targets(count: int) -> dict[str, torch.Tensor]:
    """Return boxes and labels of an image with `count` objects."""
    corners = torch.rand(count, 2) * 300
    return {
        "boxes": torch.cat((corners, corners + 20 + torch.rand(count, 2) * 100), 1),
        "labels": torch.randint(1, 91, (count,)),
    }


def main() -> None:
    """Train ten steps and evaluate one batch."""
    device = torch.device("cuda")
    net = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91
    ).to(device)
    parameters = [one for one in net.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-4)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.001, total_iters=10)
    net.train()
    for step in range(10):
        images = [torch.rand(3, 480, 640).to(device) for _ in range(2)]
        labels = [{k: v.to(device) for k, v in targets(3 + step).items()} for _ in images]
        losses = sum(net(images, labels).values())
        value = losses.item()
        if not math.isfinite(value):
            print("Loss is", value)
            sys.exit(1)
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        warmup.step()
    net.eval()
    with torch.inference_mode():
        print([{k: tuple(v.shape) for k, v in one.items()} for one in net(images)])


if __name__ == "__main__":
    main()
