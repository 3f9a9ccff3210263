"""Pictures, files written whole or not at all, device and dtype policy."""
