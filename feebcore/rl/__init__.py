"""Reinforcement learning: tasks, rollouts, advantages, losses and the loop. Algorithms and tasks are parts."""
