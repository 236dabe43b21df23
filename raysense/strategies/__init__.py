"""Where to look next: strategies, and the schedule that strings them together. No Ray, no disk."""
