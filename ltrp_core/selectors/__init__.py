"""What the selected patches are compared with at the same k (Sec. 4.1, Fig. 4 and 5).

Each baseline gives scores, higher = kept first, and goes through the same selection as a ranker.
"""
