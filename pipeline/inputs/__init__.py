"""What is read: tars and folders of images, here or in an object store. Start at `find_shards`."""

from pipeline.inputs.listing import find_shards
from pipeline.inputs.shards import DamagedShardError, Member, OnDamage, Shard, ShardReader

__all__ = ["DamagedShardError", "Member", "OnDamage", "Shard", "ShardReader", "find_shards"]
