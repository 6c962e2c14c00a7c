"""BTH, bidirectional-transformer hashing: the second system, on the same data, loop and metrics."""
