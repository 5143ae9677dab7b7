"""Instruction sets: recipe, inputs, steps, selection, what is written and said of them."""
