"""The demo: every stage on a few real photographs, ending in a page of pictures."""
