"""A recurrent actor-critic for any environment: agents, rollouts, targets, losses, evaluation."""
