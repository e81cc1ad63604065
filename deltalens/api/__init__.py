"""One function for each command, and what they return."""
