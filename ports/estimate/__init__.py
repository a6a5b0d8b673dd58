"""What a recipe will take: bytes on disk and on the device, computed before anything is downloaded."""
