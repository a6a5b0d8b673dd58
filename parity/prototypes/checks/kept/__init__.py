"""What a run keeps on the disk, goes on from, and refuses."""
