"""The paper's tasks: pure, jittable generators and their metrics, one module per task."""
