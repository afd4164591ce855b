"""A Lightning module of a ResNet-18, trained by `Trainer` in mixed precision with validation."""

import lightning
import torch
import torchvision
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):
    """A network with its loss and optimizer, as Lightning wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.resnet18(num_classes=10)

    def training_step(self, batch, index):
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self.net(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, index):
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Train two short epochs."""
    data = TensorDataset(torch.rand(96, 3, 224, 224), torch.randint(0, 10, (96,)))
    trainer = lightning.Trainer(
        accelerator="gpu",
        devices=1,
        precision="16-mixed",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(Classifier(), DataLoader(data, batch_size=16), DataLoader(data, batch_size=32))


if __name__ == "__main__":
    main()
