"""Load a finished run, pick by need, and use the model without autocompress."""

import os

import torch

import autocompress as ac

ac.search("digits", trials=int(os.environ.get("EXAMPLE_TRIALS", "12")), epochs=6, out="runs/digits")

result = ac.load_run("runs/digits")
print(result.to_csv())
point = result.pick("tau", tau=0.8)
print("picked trial", point.trial, dict(point.ratios))

# From here on nothing but PyTorch is needed.
model = torch.export.load(point.path / "model.pt2").module()
with torch.no_grad():
    print(model(torch.zeros(3, 1, 8, 8)).shape)
