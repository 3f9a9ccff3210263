"""The emoji world: the same concepts drawn in many styles, so that the true answer to (this, in that style) exists."""
