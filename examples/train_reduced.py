"""Trains a ViT of timm's on what `ltrp-pipeline reduce` has kept.

Example: python examples/train_reduced.py reduced --classes 1000 --model vit_small_patch16_224
"""

import argparse

import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from ltrp_core.naflex import as_naflex
from pipeline.training_data.reduced import ReducedDataset, collate

parser = argparse.ArgumentParser()
parser.add_argument("folder", help="--out of `ltrp-pipeline reduce`, of labeled images")
parser.add_argument("--classes", type=int, required=True)
parser.add_argument("--model", default="vit_tiny_patch16_224", help="of timm, of that patch size")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--processes", type=int, default=0, help="that load samples")


def main() -> None:
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dataset = ReducedDataset(options.folder)
    vit = timm.create_model(options.model, img_size=dataset.image_size, num_classes=options.classes)
    model = as_naflex(vit).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    loader = DataLoader(
        dataset, options.batch_size, shuffle=True, collate_fn=collate,
        num_workers=options.processes,
    )  # fmt: skip
    for epoch in range(options.epochs):
        losses = []
        for batch in loader:
            batch = {name: values.to(device) for name, values in batch.items()}
            loss = F.cross_entropy(model(batch), batch.pop("label"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.4f}")


if __name__ == "__main__":
    main()
