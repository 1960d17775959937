"""Which of two handwritten digits is the larger one: a network, a dataset and a task of your own."""
