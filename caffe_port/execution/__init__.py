"""How a net runs: what it is given, and the steps that its layers take."""
