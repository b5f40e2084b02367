"""The paper's data, preparation of its nets, inference and evaluation."""
