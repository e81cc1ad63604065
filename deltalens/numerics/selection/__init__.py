"""The selection of entries by rank: one order over them, and its prefixes."""
