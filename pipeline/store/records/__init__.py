"""Records of a unit on the disk: as Zarr arrays or as tars."""
