"""What a GPU is: catalogue, allocator, library workspaces, and tapes replayed on one."""
