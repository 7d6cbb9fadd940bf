"""What `ltrp-pipeline` can do: run.py the stages, caches.py what looks at a cache."""
