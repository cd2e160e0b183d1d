"""Recipes against each other: paired seeds, equal budgets, and a verdict that claims no more than the interval allows."""
