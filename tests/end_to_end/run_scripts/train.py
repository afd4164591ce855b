"""A user's training script: a small network, AdamW, a data loader, a validation."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    """Train three short epochs."""
    batch = int(sys.argv[sys.argv.index("--batch") + 1])
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).cuda()
    optimizer = torch.optim.AdamW(net.parameters())
    data = TensorDataset(torch.zeros(batch * 4, 3, 64, 64), torch.zeros(batch * 4).long())
    train, val = DataLoader(data, batch), DataLoader(data, 2 * batch)
    for _ in range(3):
        for images, labels in train:
            loss = nn.functional.cross_entropy(net(images.cuda()), labels.cuda())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            for images, labels in val:
                net(images.cuda()).argmax(1).eq(labels.cuda()).sum().item()
        net.train()
    print("PEAK", torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())


main()
