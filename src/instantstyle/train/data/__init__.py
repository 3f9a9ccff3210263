"""Training data: readers, features, sharding."""
