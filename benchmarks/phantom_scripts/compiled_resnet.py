"""A ResNet-18 under `torch.compile`, with its default backend."""

import torch
import torchvision


def main() -> None:
    """Train five steps."""
    net = torchvision.models.resnet18(num_classes=10).cuda()
    compiled = torch.compile(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        images, labels = torch.rand(32, 3, 224, 224).cuda(), torch.randint(0, 10, (32,)).cuda()
        with torch.autocast("cuda", torch.float16):
            loss = torch.nn.functional.cross_entropy(compiled(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print("loss", loss.item())


if __name__ == "__main__":
    main()
