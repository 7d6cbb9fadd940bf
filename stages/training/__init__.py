"""One training loop for every model: batches, order, processes, what is held out."""
