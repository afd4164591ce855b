"""A user's script for several cards: DistributedDataParallel over NCCL, started by torchrun."""

import os

import torch
import torch.distributed as dist
from torch import nn

dist.init_process_group("nccl")
rank = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(rank)
net = nn.Sequential(
    nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
)
model = nn.parallel.DistributedDataParallel(net.cuda(), device_ids=[rank])
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(3):
    images, labels = torch.zeros(8, 3, 64, 64).cuda(), torch.zeros(8).long().cuda()
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
counts = [torch.zeros(1, dtype=torch.int64).cuda() for _ in range(dist.get_world_size())]
dist.all_gather(counts, torch.tensor([7]).cuda())
assert [int(count) for count in counts] == [7, 7]
dist.destroy_process_group()
