"""The paper: its data, its nets' preparation, inference and evaluation."""
