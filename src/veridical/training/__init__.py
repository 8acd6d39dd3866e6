"""Training one model with one loss: recipe, photographs, samples, loop, checkpoints."""
