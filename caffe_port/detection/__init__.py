"""Detection of objects: a detector's net, output and drawing of its results, and their scores."""
