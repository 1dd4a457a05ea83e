"""Generators: training in stages, judging what they make, speed beside stock PyTorch."""
