"""A ResNet-50 trained by a plain loop under Accelerate, two micro-batches to a step."""

import torch
import torchvision
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    """Train six micro-batches."""
    accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
    net = torchvision.models.resnet50(num_classes=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    data = TensorDataset(torch.rand(96, 3, 224, 224), torch.randint(0, 10, (96,)))
    net, optimizer, loader = accelerator.prepare(net, optimizer, DataLoader(data, batch_size=8))
    for images, labels in loader:
        with accelerator.accumulate(net):
            loss = torch.nn.functional.cross_entropy(net(images), labels)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    accelerator.print("loss", loss.item())


if __name__ == "__main__":
    main()
