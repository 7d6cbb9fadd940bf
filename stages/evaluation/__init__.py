"""What the evaluations share: rows of figures, counts, the join with annotations."""
