"""One `.toml` a target device: the runtimes to try in order, the precisions, what to record. See `profiles.targets`."""
