"""A small BERT classifier, freshly initialized, trained by Hugging Face's `Trainer`."""

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments


class Sentences(Dataset):
    """Random token sequences of one length with labels."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, 30000, (count, 128), generator=generator)
        self.labels = torch.randint(0, 2, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        mask = torch.ones(128, dtype=torch.long)
        return {
            "input_ids": self.tokens[index],
            "attention_mask": mask,
            "labels": self.labels[index],
        }


def main() -> None:
    """Train a short epoch and evaluate."""
    net = BertForSequenceClassification(
        BertConfig(hidden_size=512, num_hidden_layers=4, num_attention_heads=8)
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=16,
            num_train_epochs=1,
            eval_strategy="epoch",
            save_strategy="no",
            report_to=[],
            fp16=True,
        )
        Trainer(net, arguments, train_dataset=Sentences(192), eval_dataset=Sentences(64)).train()


if __name__ == "__main__":
    main()
