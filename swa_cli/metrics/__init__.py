"""What is learned: tasks, their losses, and the metrics that judge them."""
