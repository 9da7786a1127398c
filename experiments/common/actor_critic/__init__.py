"""A recurrent actor-critic: agents, rollouts, targets, losses and evaluation, on any environment."""
