"""Trains ResNet-50 on noise: the script of the gallery's script report."""

import sys

import torch
import torchvision

BATCH = int(sys.argv[1]) if len(sys.argv) > 1 else 128


def main() -> None:
    """Run a few steps at the batch size given."""
    net = torchvision.models.resnet50().cuda().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    loss_of = torch.nn.CrossEntropyLoss()
    for _ in range(4):
        images = torch.rand(BATCH, 3, 224, 224, device="cuda")
        labels = torch.zeros(BATCH, dtype=torch.long, device="cuda")
        loss = loss_of(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
