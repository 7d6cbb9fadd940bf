"""The demo: photographs, shards, masked autoencoder, scores, ranker, selections, page."""

from __future__ import annotations
