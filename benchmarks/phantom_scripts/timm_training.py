"""A network of timm, by its name, trained with timm's optimizer, EMA and mixup."""

import sys

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3


def main() -> None:
    """Train eight steps and validate once."""
    net = timm.create_model(sys.argv[1], pretrained=False, num_classes=100).cuda()
    average = ModelEmaV3(net, decay=0.999)
    optimizer = create_optimizer_v2(net, opt="adamw", lr=1e-3, weight_decay=0.05)
    scaler = torch.amp.GradScaler("cuda")
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=100)
    criterion = SoftTargetCrossEntropy().cuda()
    for step in range(8):
        images = torch.rand(32, 3, 224, 224).cuda(non_blocking=True)
        labels = torch.randint(0, 100, (32,)).cuda(non_blocking=True)
        images, labels = mixup(images, labels)
        with torch.autocast("cuda"):
            loss = criterion(net(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        average.update(net, step=step)
    average.eval()
    with torch.no_grad(), torch.autocast("cuda"):
        print("top", average(images).topk(5).indices[0].tolist())


if __name__ == "__main__":
    main()
