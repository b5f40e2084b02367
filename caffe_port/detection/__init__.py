"""Objects in pictures: what a detector's net finds, how it is written and drawn, and how good it is."""
