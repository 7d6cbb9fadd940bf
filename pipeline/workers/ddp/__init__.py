"""Processes that train together: started by Ray Train, joined by torch.distributed."""
