"""Tasks, their losses, and the metrics that judge weight sets."""
