"""Looking at a cache without changing it: status, inspect, rescore; and plan, before it exists."""
