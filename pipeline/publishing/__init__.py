"""Rankers for others: ONNX and torch.export files, model cards."""
