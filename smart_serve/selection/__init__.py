"""Training the selector of a target and its drafter: `smart-serve train-selector`."""
