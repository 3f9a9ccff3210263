"""The emoji world: concepts drawn by many icon sets and transforms, so that a ground truth for every style exists."""
