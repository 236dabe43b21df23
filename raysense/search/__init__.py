"""Where to look next: pure ask/tell strategies. Importing this package loads neither torch nor Ray."""
