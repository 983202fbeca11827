"""What runs on the device, in Triton's language: the prologue, three products, and what these share."""
