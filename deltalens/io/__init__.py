"""Reading and writing checkpoints, pairing them, and the records that studies write."""
