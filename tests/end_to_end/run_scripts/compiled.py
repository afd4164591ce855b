"""A small network under `torch.compile`, in one graph, and its own peaks."""

import torch
from torch import nn


def main():
    """Train four steps; a graph that breaks is an error."""
    blocks = [
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        for _ in range(3)
    ]
    net = nn.Sequential(*blocks).cuda()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(4):
        images = torch.rand(8, 16, 64, 64).cuda()
        compiled(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    print("peaks", torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())


if __name__ == "__main__":
    main()
