"""Training loops of others, guarded: a step that finds no room is undone and repeated smaller."""
