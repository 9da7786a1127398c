"""A recurrent actor-critic: agents, rollouts, targets, losses, evaluation; any environment."""
